"""Plays wait for events that the watchdog has: a name that nobody says any more is waited for in vain."""

from __future__ import annotations

import pytest

from fdmoe_ops.chaos.events import ALARMS
from fdmoe_ops.chaos.plays import PLAYS
from fdmoe_watchdog.status_page.words import NAMES


def test_the_events_that_are_waited_for_exist() -> None:
    waited = {name for play in PLAYS.values() for name in (*play.decision, *play.then)}
    waited |= {play.excuse for play in PLAYS.values() if play.excuse}
    assert waited | set(ALARMS) <= set(NAMES)
    assert {"stall", "slow", "path_switch", "worker_gone"} <= waited


@pytest.mark.parametrize(
    ("name", "ended", "repetitions", "unfair"),
    [
        ("half-bodies", {"left": 50}, 1, []),
        ("malformed", {"refused": 480, "cut off": 15, "200": 5}, 1, []),
        ("malformed", {"refused": 498, "500": 1, "silence": 1}, 1, ["500 1", "silence 1"]),
        ("slow-clients", {"408": 40}, 2, []),
        ("slow-clients", {"200": 20}, 1, ["408 0, where there must be 1 at least"]),
        ("slow-clients", {"408": 1, "200": 39}, 2, ["408 1, where there must be 2 at least"]),
        ("flood", {"200": 9000, "503": 1000, "connections": 700}, 1, []),
        ("flood", {"200": 9999, "408": 1}, 1, ["408 1"]),
        ("flood", {"200": 9999, "wrong": 1}, 1, ["wrong 1"]),
        ("flood", {"503": 10_000}, 1, ["200 0, where there must be 1 at least"]),
        ("stall", {}, 3, []),
        ("stall", {"excused": 1}, 50, ["excused 1"]),
        ("slow", {"excused": 10}, 50, []),
        ("slow", {"excused": 11}, 50, ["excused 11 of 50"]),
        ("slow", {"excused": 1}, 1, ["excused 1 of 1"]),
    ],
)
def test_clients_at_the_door_may_end_in_some_ways_only(
    name: str, ended: dict[str, int], repetitions: int, unfair: list[str]
) -> None:
    assert PLAYS[name].unfair(ended, repetitions) == unfair
