"""How long a recovery took: from the detection of a stall to the first batch that is answered after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fdmoe_watchdog.process import WorkerProcess

Rung = Literal["abort", "replay"]


@dataclass(frozen=True, slots=True)
class Recovered:
    rung: Rung
    worker: str
    seconds: float


class RecoveryClock:
    """One recovery at a time: a later rung of the same stall keeps its start."""

    def __init__(self) -> None:
        self._detected_at: float | None = None
        self._rung: Rung = "abort"
        self._worker = ""
        self._answered = 0

    def start(self, process: WorkerProcess, now: float) -> None:
        """A stall was detected, and its worker is to answer after the abort; a shadow run has been answered before."""
        page = process.read_page()
        if page is None or not page.waiting:
            return
        self._detected_at, self._rung = now, "abort"
        self._wait_for(process)

    def hand_over(self, process: WorkerProcess, now: float, *, reached: bool = True) -> None:
        """The worker was fenced: whoever is routed to next is to answer what it had, if it had anything. One that the
        gateway never reached had nothing, and what was waited for still is."""
        if not reached:
            self._rung, self._worker = "replay", ""
            return
        page = process.read_page()
        if page is None or not page.waiting:
            self._detected_at = None
            return
        if self._detected_at is None:
            self._detected_at = now
        self._rung, self._worker = "replay", ""

    def routed(self, process: WorkerProcess) -> None:
        if self._detected_at is not None and self._rung == "replay":
            self._wait_for(process)

    def look(self, processes: Mapping[str, WorkerProcess], now: float) -> Recovered | None:
        """The recovery, once, when it is over."""
        process = processes.get(self._worker)
        if self._detected_at is None or process is None or process.tracker.last is None:
            return None
        if process.tracker.last.answered <= self._answered:
            return None
        seconds, self._detected_at = now - self._detected_at, None
        return Recovered(self._rung, process.name, seconds)

    def _wait_for(self, process: WorkerProcess) -> None:
        page = process.read_page()
        self._worker, self._answered = process.name, page.answered if page is not None else 0
