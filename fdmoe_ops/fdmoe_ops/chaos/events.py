"""Everything that a tree's watchdog says it did, followed from outside."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any

from fdmoe_ops.chaos.tree import Tree
from fdmoe_ops.client import WatchdogClient, WatchdogUnreachable

_LOOK_S = 0.02
Event = dict[str, Any]
# what only a fault should bring
ALARMS = (
    "stall", "fence", "kill", "abort_ended", "abort_timed_out", "link_lost", "page_lost", "gateway_frozen",
    "gateway_exit", "worker_gone", "weights_gone", "weights_stopped", "device_out", "probe_silent", "shadow_mismatch",
    "slow",
)  # fmt: skip


def new_events(seen: list[Event], events: list[Event]) -> list[Event]:
    """What was appended to a log since `seen` was read; the log keeps its newest entries only."""
    for known in range(min(len(seen), len(events)), 0, -1):
        if seen[-known:] == events[:known]:
            return events[known:]
    return events


def monotonic_of(event: Event) -> float:
    """When it was, by this host's monotonic clock, s. Events have the wall clock to a millisecond."""
    return datetime.fromisoformat(event["at"]).timestamp() - time.time() + time.monotonic()


def restarts_s(events: list[Event]) -> list[float]:
    """Of the workers that became ready: how long each had been out, from its fence on; of one without, since it was
    started."""
    fenced: dict[str, float] = {}
    found = []
    for event in events:
        if event["event"] == "fence":
            # a start that fails is fenced as well, and is part of the way back
            fenced.setdefault(event["worker"], monotonic_of(event))
        elif event["event"] == "worker_ready":
            since = fenced.pop(event["worker"], None)
            found.append(event["seconds"] if since is None else monotonic_of(event) - since)
    return found


class EventTail:
    """Reads the watchdog's status from now on until it is closed. A watchdog that does not answer is asked again.

    Making one raises WatchdogUnreachable."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        with WatchdogClient(tree.run_dir) as client:
            self._seen: list[Event] = client.status()["events"]
        self._events: list[Event] = []
        self._come = threading.Condition()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def mark(self) -> int:
        """The number of events so far."""
        with self._come:
            return len(self._events)

    def since(self, mark: int) -> list[Event]:
        with self._come:
            return self._events[mark:]

    def wait(self, mark: int, names: tuple[str, ...], deadline_s: float) -> Event:
        """The first event of one of these names after the mark. Raises TimeoutError with what came instead."""

        def found() -> Event | None:
            return next((event for event in self._events[mark:] if event["event"] in names), None)

        with self._come:
            self._come.wait_for(lambda: found() is not None, deadline_s)
            event = found()
            came = [event["event"] for event in self._events[mark:]]
        if event is None:
            raise TimeoutError(f"none of {', '.join(names)} came within {deadline_s:g} s; these did: {', '.join(came)}")
        return event

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            try:
                with WatchdogClient(self._tree.run_dir) as client:
                    while not self._stop.wait(_LOOK_S):
                        self._take(client.status()["events"])
            except WatchdogUnreachable:
                continue

    def _take(self, events: list[Event]) -> None:
        new = new_events(self._seen, events)
        self._seen = events
        if new:
            with self._come:
                self._events += new
                self._come.notify_all()
