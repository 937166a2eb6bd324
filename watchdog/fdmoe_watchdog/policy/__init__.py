"""The recovery ladder of one device as a pure function: what was seen goes in, what is to be done comes out.

No clock, no I/O, no logging: `now` is part of the observation, on the caller's monotonic clock, in seconds.

The life of a worker, and of the holder of the weights, which has no ABORTING:

    ABSENT -> BACKOFF -> STARTING -> READY <-> ABORTING
                 ^           |         |          |
                 |           v         v          v
                 +--------- DYING <----+----------+       (budget gone: DYING -> ABSENT)

A worker leaves BACKOFF when the holder is READY and the memory of its predecessor is back on the device.

The path of the active worker:   fused -> baseline -> shadow -> fused       (shadow, fused -> baseline: wrong or slow)

It comes back to fused with the first token bucket that is proven; the other buckets stay in shadow until they are.
"""

from __future__ import annotations

from fdmoe_watchdog.policy import path, weights, workers
from fdmoe_watchdog.policy.actions import (
    Abort,
    AbortEnded,
    Action,
    BudgetGone,
    Ending,
    Fence,
    GiveUp,
    Gone,
    HolderGone,
    HolderReady,
    Kill,
    KillHolder,
    Route,
    SetPath,
    Start,
    StartHolder,
)
from fdmoe_watchdog.policy.state import (
    FIRST_START,
    Check,
    Condemned,
    Holder,
    HolderSeen,
    Life,
    Observation,
    Seen,
    State,
    Worker,
    initial,
)
from fdmoe_watchdog.policy.turn import Turn, restart_delay_s
from fdmoe_watchdog.policy.workers import NEW_WEIGHTS
from fdmoe_watchdog.settings import RecoverySettings

__all__ = [
    "FIRST_START", "NEW_WEIGHTS", "Abort", "AbortEnded", "Action", "BudgetGone", "Check", "Condemned", "Ending",
    "Fence", "GiveUp", "Gone", "Holder", "HolderGone", "HolderReady", "HolderSeen", "Kill", "KillHolder", "Life",
    "Observation", "Route", "Seen", "SetPath", "Start", "StartHolder", "State", "Worker", "decide", "initial",
    "restart_delay_s",
]  # fmt: skip


def decide(state: State, observation: Observation, settings: RecoverySettings) -> tuple[State, tuple[Action, ...]]:
    """One turn of the ladder. The order of the actions is the order in which they must be done."""
    turn = Turn(state, observation, settings)
    if turn.starved:
        turn.leave_out_lag()
    if observation.condemned is not None:
        # rung 5 before all others: nothing that runs on this device can be trusted
        turn.give_up(observation.condemned.reason, Ending.NODE, observation.condemned.node_action)
        return turn.state, tuple(turn.actions)
    weights.look(turn)
    for name, seen in observation.workers.items():
        workers.look(turn, name, seen)
    workers.choose_active(turn)
    path.choose(turn)
    # only now: what the active worker said of the path is heard before another takes its place
    weights.hand_over(turn)
    workers.give_up_if_nobody_is_left(turn)
    turn.change(starved=turn.starved)
    return turn.state, tuple(turn.actions)
