"""What the ladder is told each turn, and what it remembers from one turn to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal

from fdmoe_watchdog.messages import Blame, Path

FIRST_START = "start"


class Life(Enum):
    ABSENT = "absent"
    BACKOFF = "backoff"
    STARTING = "starting"
    READY = "ready"
    ABORTING = "aborting"
    DYING = "dying"


# ---- what is seen


@dataclass(frozen=True, slots=True)
class Check:
    """One batch was computed on both paths. `bucket` is the token bucket of its size. `suspect`: the numbers may be
    right, but the fused path took much longer than is usual."""

    bucket: int
    ok: bool
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """What the watchdog saw of one worker.

    launch        the outstanding fused launch, 0 if none
    ended         the last launch that left the device, done or aborted
    quiet_s       how long some CTA of the outstanding launch has shown no beat
    stall_after_s the stall time that was learned for its layer and size
    untouched_s   how long batches have waited in the worker without any sign of work
    host_still_s  how long of that neither path has run and its host thread has shown no beat
    blocked_s     how long of that its main thread was seen to sleep, and not for the device or for messages; 0 unless
                  all others did as well at the last two looks
    held_s        how long a signal has held its process (SIGSTOP), which shows no sign of work
    trial_s       how long it has been at the trial kernel of its start
    checks        comparisons of the paths since the last observation
    slow          it said since then that its fused path has become slow, and its baseline has not
    fused         its fused path was proven at warm-up; without that it serves on the baseline alone
    cut_off       why nothing of it can be relied on any more, whether it lives or not: "exit", its end has begun, or
                  its connection to the gateway or to the watchdog broke; "page", its beat page is damaged;
                  "unreachable", the gateway gets no connection to it, or no word on it
    failed        it said that it cannot serve: why, and whose fault it is
    memory_back   nothing of a predecessor that ended is left on the device, as far as can be known
    """

    alive: bool
    ready: bool = False
    launch: int = 0
    ended: int = 0
    quiet_s: float = 0.0
    stall_after_s: float = math.inf
    untouched_s: float = 0.0
    host_still_s: float = 0.0
    blocked_s: float = 0.0
    held_s: float = 0.0
    trial_s: float = 0.0
    checks: tuple[Check, ...] = ()
    slow: bool = False
    fused: bool = True
    cut_off: Literal["", "exit", "page", "unreachable"] = ""
    failed: tuple[str, Blame] | None = None
    memory_back: bool = True


@dataclass(frozen=True, slots=True)
class HolderSeen:
    """What the watchdog saw of the process that holds the weights. `failed` and `held_s` as in Seen; `spoilt`: memory
    of the device failed, and a worker that maps what it holds ended by it; `cut_off`: its end has begun."""

    alive: bool
    ready: bool = False
    failed: tuple[str, Blame] | None = None
    held_s: float = 0.0
    spoilt: bool = False
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Condemned:
    """The device can no longer be trusted; `node_action` is what somebody must do to the node."""

    reason: str
    node_action: str


@dataclass(frozen=True, slots=True)
class Observation:
    """`lag_s`: how much later than planned this turn came; a watchdog that was starved judges nobody's silence, and
    counts that time for no deadline."""

    now: float
    workers: Mapping[str, Seen]
    holder: HolderSeen
    lag_s: float = 0.0
    condemned: Condemned | None = None


# ---- what is remembered


@dataclass(frozen=True, slots=True)
class Worker:
    """`since`: when this stage of life began, later by what the watchdog was starved since. `until`: the end of a
    backoff. `launch`: the one being aborted. `suspect`: the launch that the last reading found silent for too long.
    `weights`: the holder it maps from."""

    life: Life = Life.ABSENT
    generation: int = 0
    since: float = 0.0
    until: float = 0.0
    launch: int = 0
    suspect: int = 0
    reason: str = FIRST_START
    weights: int = 0


@dataclass(frozen=True, slots=True)
class Holder:
    """`since`, `until`: as in Worker. `crowded`: there was no room for new weights beside those that workers of a lost
    holder still map."""

    life: Life = Life.ABSENT
    generation: int = 0
    since: float = 0.0
    until: float = 0.0
    reason: str = FIRST_START
    restarts: tuple[float, ...] = ()
    crowded: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """The holder and a pair of workers on one device.

    proven    token buckets whose batches may be served by the fused path; None: all, as after a warm-up
    clean     good comparisons in a row, per token bucket
    restarts  their times, oldest first
    starved   the watchdog was, in the last turn
    """

    workers: Mapping[str, Worker]
    holder: Holder
    active: str | None = None
    path: Path = "fused"
    proven: frozenset[int] | None = None
    clean: Mapping[int, int] = field(default_factory=dict)
    retry_at: float = 0.0
    cooldown_s: float = 0.0
    fused_since: float = -math.inf
    restarts: tuple[float, ...] = ()
    starved: bool = False

    @property
    def buckets(self) -> tuple[int, ...] | None:
        """`proven` in order."""
        return None if self.proven is None else tuple(sorted(self.proven))


def initial(names: tuple[str, ...], now: float) -> State:
    """The holder is to be started at once, and all workers when it is ready."""
    return State(
        workers={name: Worker(Life.BACKOFF, 0, now, now) for name in names},
        holder=Holder(Life.BACKOFF, 0, now, now),
        fused_since=now,
    )
