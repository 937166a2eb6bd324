"""Flight records taken at the moment of a decision, and written by a thread of their own."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from fdmoe_watchdog import flight
from fdmoe_watchdog.background import Background
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.process import WorkerProcess


class FlightRecorder:
    """`last` is the newest record that is safe on disk."""

    def __init__(self, directory: Path, events: EventLog) -> None:
        self.last: Path | None = None
        self._directory = directory
        self._events = events
        self._disk = Background("watchdog-disk")
        self._saved = threading.Event()
        self._saved.set()

    def record(self, process: WorkerProcess, cause: str) -> None:
        snapshot = process.tracker.last
        if snapshot is None:
            return  # it ended before its page was read once
        document = flight.record(
            snapshot,
            worker=process.name,
            cause=cause,
            quiet_s=process.tracker.quiet_s,
            now_ns=time.monotonic_ns(),
            at=datetime.now(UTC),
        )
        self._events.add(
            "stall",
            level="warning",
            worker=process.name,
            generation=process.generation,
            cause=cause,
            launch=snapshot.begun,
            quiet_s=round(process.tracker.quiet_s, 4),
            begun_s_ago=float(str(document["begun_s_ago"])),
            verdict=str(document["verdict"]),
        )
        self._saved = self._disk.submit(lambda: self._save(document))

    def wait(self, timeout_s: float) -> None:
        """Until the last record is safe, but no longer than this."""
        self._saved.wait(timeout_s)

    def _save(self, document: dict[str, object]) -> None:
        """In the background: a full or hanging disk must not stop a recovery."""
        try:
            self.last = flight.save(self._directory, document)
        except OSError as error:
            self._events.add("flight_record_lost", level="error", directory=str(self._directory), reason=str(error))
