"""How each fault of the catalogue is played on a game day, and what it must come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from fdmoe_ops.chaos.catalogue import FAULTS

# What a client at the door may end with: it left, it was cut off, answered, told what is wrong, or to come back. How
# many connections a flood had, where they were fewer than its requests, is no ending.
FAIR = ("left", "cut off", "200", "refused", "503", "connections")
# one repetition in so many may be excused
_EXCUSED_OF = 5
# while `corrupt` is played: one batch in 20
CORRUPT_COMPARE_RATIO = 0.05


class Group(Enum):
    """How often a fault is played, by what it costs."""

    ABORTABLE = "abortable"
    OTHER = "other"


@dataclass(frozen=True)
class Play:
    """One fault.

    decision     the events of which the first tells when the service had noticed; () where it has nothing to notice
    excuse       the event by which the service says why it did not; few repetitions may end so
    then         an event that must have come before the tree counts as whole again
    served       so many fused batches of the active worker before it: what is usual must have been learned
    told         what some client at the door must be answered in each repetition
    quiet        nothing may be noticed: none of the events that only a fault should bring
    away_s       for so long at most clients may be refused or cut off, and must send again; 0: at no time. A few times
                 the slowest that was measured, beside others as well
    wrong        so many launches, which nothing has checked, may be answered wrong; they must show, or be found
    final_path   what serves in the end
    """

    name: str
    group: Group = Group.OTHER
    decision: tuple[str, ...] = ()
    excuse: str = ""
    then: tuple[str, ...] = ()
    served: int = 0
    told: str = ""
    quiet: bool = False
    away_s: float = 0.0
    wrong: int = 0
    final_path: str = "fused"

    def unfair(self, ended: Mapping[str, int], repetitions: int = 1) -> list[str]:
        """Of how many clients at the door ended how: what none may end with, and what too few were told. Of how many
        repetitions were excused: whether they were too many."""
        fair = (*FAIR, self.told, *(("excused",) if self.excuse else ()))
        found = [f"{ending} {count}" for ending, count in ended.items() if ending not in fair]
        if (excused := ended.get("excused", 0)) * _EXCUSED_OF > repetitions:
            found.append(f"excused {excused} of {repetitions}")
        if self.told and ended.get(self.told, 0) < repetitions:
            found.append(f"{self.told} {ended.get(self.told, 0)}, where there must be {repetitions} at least")
        return found


_GONE = ("fence", "worker_gone")

PLAYS: dict[str, Play] = {
    play.name: play
    for play in (
        Play("stall", Group.ABORTABLE, ("stall",), then=("abort_ended",)),
        Play("endless", decision=("stall",), then=("kill", "worker_gone")),
        # on a GPU the launch may be silent before the driver says why
        Play("illegal", decision=("stall", *_GONE), then=("worker_gone",)),
        Play("nan", Group.ABORTABLE, ("shadow_mismatch",), then=("path_switch",)),
        Play("wrong", Group.ABORTABLE, wrong=1),
        # the last of them is the first that is compared, after it has been answered
        Play(
            "corrupt", decision=("shadow_mismatch",), then=("path_switch",), wrong=math.ceil(1 / CORRUPT_COMPARE_RATIO)
        ),
        Play("slow", Group.ABORTABLE, ("slow",), "slow_excused", ("path_switch",), served=50),
        Play("kill-active", decision=_GONE, then=("worker_gone",)),
        Play("stop-active", decision=("stall",), then=("kill", "worker_gone")),
        Play("kill-standby", decision=_GONE, then=("worker_gone",)),
        Play("stop-standby", decision=("stall",), then=("kill", "worker_gone")),
        Play("kill-workers", decision=_GONE, then=("worker_gone",)),
        Play("stop-workers", decision=("stall",), then=("kill", "worker_gone")),
        Play("block-worker", decision=("stall",), then=("kill", "worker_gone")),
        Play("kill-holder", decision=("weights_kill", "weights_gone"), then=("weights_ready", "worker_gone")),
        Play("stop-holder", decision=("weights_stopped",), then=("worker_gone", "worker_ready")),
        Play("kill-gateway", decision=("gateway_exit",), then=("gateway_listening",), away_s=10),
        Play("stop-gateway", decision=("gateway_frozen",), then=("gateway_listening",), away_s=10),
        Play("kill-probe", decision=("probe_exit",), then=("gpu_readable",)),
        Play("stop-probe", decision=("probe_silent",), then=("gpu_readable",)),
        Play("block-probe", decision=("probe_silent",), then=("gpu_readable",)),
        Play("truncate-page", decision=("page_lost", *_GONE), then=("worker_gone",)),
        Play("noise-page", decision=("page_lost", *_GONE), then=("worker_gone",)),
        Play("stop-watchdog", quiet=True),
        Play("kill-watchdog", away_s=30),
        Play("failing-worker", decision=_GONE, then=("restart_budget_gone",), final_path="baseline"),
        Play("shared-memory-full", decision=_GONE, then=("worker_not_started",)),
        Play("disk-full", Group.ABORTABLE, ("stall",), then=("flight_record_lost",)),
        Play("memory-at-warm-up", decision=_GONE, then=("worker_start",)),
        Play("busy-neighbour", quiet=True),
        Play("wall-clock", Group.ABORTABLE, ("stall",), then=("abort_ended",)),
        Play("slow-clients", told="408", quiet=True),
        Play("half-bodies", quiet=True),
        Play("disconnects", quiet=True),
        Play("malformed", quiet=True),
        Play("flood", told="200", away_s=15),
    )
}

assert list(PLAYS) == [fault.name for fault in FAULTS], "a play for each fault, in the catalogue's order"
