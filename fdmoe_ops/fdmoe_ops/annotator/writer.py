"""Writing annotations, one after the other: patient while Grafana is away, and never twice the same."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import structlog

from fdmoe_ops.annotator.chronicle import Annotation
from fdmoe_ops.annotator.outbox import Outbox
from fdmoe_ops.grafana.api import Grafana
from fdmoe_ops.grafana.errors import GrafanaError, NotFound, Unavailable
from fdmoe_ops.grafana.patience import pause_s
from fdmoe_ops.settings import SettingsError
from fdmoe_watchdog.messages import Annotated

# a Grafana that is updated or moved is back by then; one annotation that it cannot store holds up the others no longer
PATIENCE_S = 600.0
_REMEMBERED = 256  # annotations that may still be changed


class Writer:
    """`connect` makes a Grafana with the token as it is now, which may be another each time. `report` is told what
    became of each annotation. `clock` in seconds; `pause` waits so many."""

    def __init__(
        self,
        connect: Callable[[], Grafana],
        report: Callable[[Annotated], None],
        *,
        clock: Callable[[], float],
        pause: Callable[[float], object],
    ) -> None:
        self._connect = connect
        self._log = structlog.get_logger("fdmoe.annotator")
        self._report = report
        self._clock = clock
        self._pause = pause
        self._ids: OrderedDict[int, int] = OrderedDict()
        self._away = False
        self._failed = 0

    def run(self, outbox: Outbox) -> None:
        """Until the box is closed and empty."""
        while (annotation := outbox.take()) is not None:
            self._report(self._deliver(annotation))

    def _deliver(self, annotation: Annotation) -> Annotated:
        started = self._clock()
        tries = 0
        while True:
            try:
                self._write(annotation, again=tries > 0)
            except Unavailable as error:
                tries += 1
                self._lost(str(error))
                wait_s = pause_s(tries, error.retry_after_s)
                if self._clock() + wait_s - started > PATIENCE_S:
                    break
                self._pause(wait_s)
            except (GrafanaError, SettingsError) as error:
                self._lost(str(error))
                break
            else:
                self._back()
                return Annotated(sent=1)
        self._failed += 1
        return Annotated(failed=1)

    def _write(self, annotation: Annotation, *, again: bool) -> None:
        grafana = self._connect()
        written = (annotation.time_ms, annotation.end_ms, annotation.tags, annotation.text)
        known = self._ids.get(annotation.key)
        if known is None and again:
            # it may have been written although the answer was lost
            known = self._find(grafana, annotation)
        if known is None:
            known = grafana.add_annotation(*written)
        else:
            try:
                grafana.change_annotation(known, *written)
            except NotFound:
                known = grafana.add_annotation(*written)  # somebody has removed it
        self._ids[annotation.key] = known
        if len(self._ids) > _REMEMBERED:
            self._ids.popitem(last=False)

    def _find(self, grafana: Grafana, annotation: Annotation) -> int | None:
        for found in grafana.find_annotations(annotation.time_ms, annotation.tags):
            if found.get("time") == annotation.time_ms and found.get("text") == annotation.text:
                return int(found["id"])
        return None

    # ---- one line an outage

    def _lost(self, reason: str) -> None:
        if not self._away:
            self._log.warning("grafana_lost", reason=reason)
        self._away = True

    def _back(self) -> None:
        if self._away:
            self._log.info("grafana_back", failed=self._failed)
        self._away, self._failed = False, 0
