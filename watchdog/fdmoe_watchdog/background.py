"""Work that must never hold up a decision: a daemon thread that does what it is given, in order.

Standard error may be a pipe that nobody reads, and a disk may hang; the watchdog's loop goes on all the same.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

_WAITING = 1000


class Background:
    """Drops what does not fit its queue. What the work raises is told, and ends here."""

    def __init__(self, name: str) -> None:
        self._queue: queue.Queue[tuple[Callable[[], object], threading.Event]] = queue.Queue(_WAITING)
        self._name = name
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(self, work: Callable[[], object]) -> threading.Event:
        """An event that is set once the work is done, failed, or was dropped."""
        done = threading.Event()
        try:
            self._queue.put_nowait((work, done))
        except queue.Full:
            done.set()
        return done

    def _run(self) -> None:
        while True:
            work, done = self._queue.get()
            try:
                work()
            except Exception:  # noqa: BLE001 - a thread's outermost loop: the next work is another
                structlog.get_logger("fdmoe.watchdog").exception("background_failed", thread=self._name)
            finally:
                done.set()
