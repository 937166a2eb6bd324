"""What the status page is made of, taken by the loop at one moment; all of it is immutable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fdmoe_watchdog.flights import FlightView
from fdmoe_watchdog.pair import Pair
from fdmoe_watchdog.status import Event, TreeView
from fdmoe_watchdog.status_page import beats
from fdmoe_watchdog.status_page.history import History, Sample


@dataclass(frozen=True, slots=True)
class LiveView:
    """`taken_at` by the loop's monotonic clock. `first`: the number of samples[0]. `stall` is the last one,
    `recovered` how it ended, if an answer was due and came."""

    tree: TreeView
    taken_at: float
    beats: tuple[beats.Beats, ...]
    samples: tuple[Sample, ...]
    first: int
    flight: FlightView | None
    stall: Event | None
    recovered: Event | None


class Photographer:
    """Takes one view after the other and remembers the last stall, which may be older than the events that are kept."""

    def __init__(self) -> None:
        self._stall: Event | None = None
        self._recovered: Event | None = None
        self._newest: Event | None = None

    def take(
        self, tree: TreeView, pairs: Sequence[Pair], history: History, flight: FlightView | None, now: float
    ) -> LiveView:
        self._remember(tree.events)
        return LiveView(
            tree=tree,
            taken_at=now,
            beats=tuple(beats.take(process) for pair in pairs for process in pair.processes.values()),
            samples=history.samples,
            first=history.first,
            flight=flight,
            stall=self._stall,
            recovered=self._recovered,
        )

    def _remember(self, events: Sequence[Event]) -> None:
        known = next((index for index, event in enumerate(events) if event is self._newest), -1)
        for event in events[known + 1 :]:
            if event["event"] == "stall":
                self._stall, self._recovered = event, None
            elif event["event"] == "recovery":
                self._recovered = event
        self._newest = events[-1] if events else None
