"""A soak: no fault at all, and a service that must not find one.

The load changes all the time: many clients, one client, nobody for a while, sizes that come for the first time, and a
neighbour that takes the device (or the cores) for itself in turns. Whatever the watchdog then does to a kernel or a
process is a false alarm.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fdmoe_ops.chaos.events import ALARMS, Event, EventTail
from fdmoe_ops.chaos.load import Load, Pool, Sent
from fdmoe_ops.chaos.neighbours import busy_neighbours
from fdmoe_ops.chaos.tree import Tree

_PHASE_S = 8.0
# name, clients, and whether a neighbour is at work
PHASES = (
    ("many", 8, False),
    ("idle", 0, False),
    ("one", 1, False),
    ("many beside a neighbour", 8, True),
    ("one beside a neighbour", 1, True),
)


@dataclass
class Soaked:
    """`phases` counts what was played; `alarms` are the events that should not have come."""

    seconds: float = 0.0
    phases: dict[str, int] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    alarms: list[Event] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.alarms and not any(sent.failed or sent.wrong or sent.retries for sent in self.sent)


def soak(tree: Tree, pools: list[Pool], device: str, minutes: float) -> Iterator[Soaked]:
    """What was found so far, after each phase. `pools` are of growing sizes: each comes into use one after the other,
    so that its sizes come for the first time beside others. `device` is the one that the neighbour works on. All phases
    are played once at least, shorter ones where there is little time."""
    result = Soaked()
    tail = EventTail(tree)
    started = time.monotonic()
    phase_s = min(_PHASE_S, minutes * 60 / len(PHASES))
    try:
        for number, (name, clients, beside) in enumerate(itertools.cycle(PHASES)):
            if number >= len(PHASES) and time.monotonic() - started >= minutes * 60:
                break
            pool = pools[number % min(1 + number // 2, len(pools))]
            with busy_neighbours(device, phase_s) if beside else contextlib.nullcontext():
                result.sent += _phase(tree, pool, clients, phase_s)
            result.phases[name] = result.phases.get(name, 0) + 1
            result.seconds = time.monotonic() - started
            result.alarms = [event for event in tail.since(0) if event["event"] in ALARMS]
            yield result
    finally:
        tail.close()


def _phase(tree: Tree, pool: Pool, clients: int, seconds: float) -> list[Sent]:
    if not clients:
        time.sleep(seconds)
        return []
    with Load(tree.gateway_address, pool, clients) as load:
        time.sleep(seconds)
    return load.sent
