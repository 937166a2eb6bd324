"""The watchdog's decisions as events: logged, and the last of them kept for the status."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import structlog

from fdmoe_watchdog.status import Event

_KEPT = 50
Level = Literal["info", "warning", "error"]


class EventLog:
    """`add` takes plain values only: an event goes into the log line and into the status document as it is."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("fdmoe.watchdog")
        self._last: deque[Event] = deque(maxlen=_KEPT)
        self._listeners: tuple[Callable[[Event], None], ...] = ()

    @property
    def last(self) -> tuple[Event, ...]:
        return tuple(self._last)

    def add(self, event: str, /, level: Level = "info", **details: str | int | float) -> None:
        happened: Event = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **details}
        self._last.append(happened)
        for listener in self._listeners:
            listener(happened)
        getattr(self._log, level)(event, **details)

    def follow(self, listener: Callable[[Event], None]) -> None:
        """Hand each event to `listener` from now on, in the thread that adds it: it may neither wait nor raise."""
        self._listeners = (*self._listeners, listener)


class BoundEvents:
    """The log for somebody whose events all have some details in common, such as the device."""

    def __init__(self, log: EventLog, **always: str | int | float) -> None:
        self._log, self._always = log, always

    def add(self, event: str, /, level: Level = "info", **details: str | int | float) -> None:
        self._log.add(event, level, **self._always, **details)
