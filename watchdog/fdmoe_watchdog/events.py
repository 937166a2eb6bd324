"""The watchdog's decisions as events: logged, and the last of them kept for the status."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

import structlog

from fdmoe_watchdog.status import Event

_KEPT = 50


class EventLog:
    """`add` takes plain values only: an event goes into the log line and into the status document as it is."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("fdmoe.watchdog")
        self._last: deque[Event] = deque(maxlen=_KEPT)

    @property
    def last(self) -> tuple[Event, ...]:
        return tuple(self._last)

    def add(self, event: str, **details: str | int | float) -> None:
        self._last.append({"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details})
        self._log.info(event, **details)
