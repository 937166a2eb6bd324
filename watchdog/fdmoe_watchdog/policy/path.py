"""Which path the active worker serves: back to fused by way of the shadow, one token bucket after the other."""

from __future__ import annotations

from collections import Counter

from fdmoe_watchdog.policy.actions import SetPath
from fdmoe_watchdog.policy.state import Check, Life
from fdmoe_watchdog.policy.turn import Turn


def choose(turn: Turn) -> None:
    active, state = turn.state.active, turn.state
    if active is None:
        return
    seen = turn.seen(active)
    if state.path == "baseline":
        if seen.fused and turn.now >= state.retry_at and turn.worker(active).life is Life.READY:
            turn.change(clean={}, proven=frozenset())
            turn.set_path(active, "shadow", "cooled_down")
    elif not all(check.ok for check in seen.checks):
        # in the shadow nobody was hurt; on the fused path one of the few batches that are compared was wrong
        turn.fall_back(active, "mismatch")
    elif seen.slow:
        # in the shadow, too: each batch would wait for a slow launch that nobody needs
        turn.fall_back(active, "slow")
    elif state.proven is not None and seen.checks:
        _count(turn, active, seen.checks, state.proven)


def _count(turn: Turn, active: str, checks: tuple[Check, ...], proven: frozenset[int]) -> None:
    clean = Counter(turn.state.clean)
    for check in checks:
        clean[check.bucket] = 0 if check.suspect else clean[check.bucket] + 1
    newly = {bucket for bucket, count in clean.items() if count >= turn.settings.shadow_checks} - proven
    turn.change(clean=dict(clean), proven=proven | newly)
    if newly and turn.state.path == "shadow":
        turn.change(fused_since=turn.now)
        turn.set_path(active, "fused", "proven")
    elif newly:
        turn.do(SetPath(active, "fused", "fused", "proven", turn.state.buckets))
