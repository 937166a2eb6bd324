"""Plays wait for events that the watchdog has: a name that nobody says any more is waited for in vain."""

from __future__ import annotations

from fdmoe_ops.chaos.events import ALARMS
from fdmoe_ops.chaos.plays import PLAYS
from fdmoe_watchdog.status_page.words import NAMES


def test_the_events_that_are_waited_for_exist() -> None:
    waited = {name for play in PLAYS.values() for name in (*play.decision, *play.then)}
    assert waited | set(ALARMS) <= set(NAMES)
    assert {"stall", "slow", "path_switch", "worker_gone"} <= waited
