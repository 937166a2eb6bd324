"""Processes of a device that have everything imported and wait to be told which worker they are to be.

To import torch's CUDA build takes 4 of the 6 seconds that a worker needs to start. A spare has done it before it is
needed, and has neither a page nor a CUDA context yet: it costs some hundred megabytes of the host's memory, and nothing
on the device. There is one for each worker, for both may die at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from fdmoe_watchdog.events import BoundEvents
from fdmoe_watchdog.process import Spare
from fdmoe_watchdog.status import SpareView

# one that ends by itself would do so again
_PAUSE_S = 60.0


class SpareKeeper:
    """Keeps `wanted` spares; `there` are those that have been started, the oldest first."""

    def __init__(
        self, command: tuple[str, ...], environment: Mapping[str, str], events: BoundEvents, *, wanted: int
    ) -> None:
        self.there: list[Spare] = []
        self._command = command
        self._environment = environment
        self._events = events
        self._wanted = wanted
        self._not_before = 0.0

    @property
    def views(self) -> tuple[SpareView, ...]:
        views = [SpareView(spare.pid, "ready" if spare.ready else "starting") for spare in self.there]
        return (*views, *[SpareView()] * (self._wanted - len(views)))

    def tend(self, now: float, *, quiet: bool) -> None:
        """`quiet`: no worker is on its way up whom a start would hold up. One starts after the other: to import is
        work, and two at once take twice as long."""
        for gone in self.reap():
            self._events.add("spare_gone", level="warning", exit_code=gone.exit_code or 0)
            self._not_before = now + _PAUSE_S
        wanted = len(self.there) < self._wanted and all(spare.ready for spare in self.there)
        if wanted and quiet and now >= self._not_before:
            try:
                self.there.append(Spare(self._command, self._environment))
            except OSError as error:
                self._events.add("spare_not_started", level="warning", reason=str(error))
                self._not_before = now + _PAUSE_S

    def reap(self) -> list[Spare]:
        """Those that have ended, which are kept no longer."""
        gone = [spare for spare in self.there if not spare.alive]
        for spare in gone:
            spare.discard()
            self.there.remove(spare)
        return gone

    def take(self) -> Spare | None:
        """The oldest, which is the caller's from now on; None if there is none that lives."""
        spare = next((spare for spare in self.there if spare.alive), None)
        if spare is not None:
            self.there.remove(spare)
        return spare
