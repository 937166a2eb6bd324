"""Faults that last: for how many launches, and when they are refused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fdmoe_watchdog import messages
from fdmoe_watchdog.chaos import Chaos
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.settings import RecoverySettings


class Asker:
    """Stands in for the channel of who asks."""

    def __init__(self) -> None:
        self.told: list[messages.ChaosReply] = []

    def send(self, reply: messages.ChaosReply) -> None:
        self.told.append(reply)


def ask(fault: messages.Fault, **recovery: float) -> tuple[list[messages.Message], list[messages.ChaosReply]]:
    """What the active worker is told, and what is answered at once."""
    told: list[messages.Message] = []
    chaos = Chaos(EventLog(), lambda _, message: told.append(message), RecoverySettings(**cast(Any, recovery)))
    pair = SimpleNamespace(active=SimpleNamespace(name="a"), state=SimpleNamespace(path="fused"))
    asker = Asker()
    chaos.request(cast(Any, asker), fault, cast(Any, [pair]), {})
    return told, asker.told


@pytest.mark.parametrize(
    ("fault", "recovery", "armed"),
    [
        ("wrong", {}, messages.ArmFault("wrong", 1)),
        ("corrupt", {}, messages.ArmFault("wrong", 2000)),
        ("corrupt", {"compare_ratio": 0.3}, messages.ArmFault("wrong", 7)),
        ("slow", {"slow_checks": 3}, messages.ArmFault("slow", 21)),
        ("slow", {"slow_checks": 0}, messages.ArmFault("slow", 7)),
    ],
)
def test_so_many_launches_have_it(
    fault: messages.Fault, recovery: dict[str, float], armed: messages.ArmFault
) -> None:  # fmt: skip
    assert ask(fault, **recovery) == ([armed], [])


def test_what_nothing_would_find_is_refused() -> None:
    told, (reply,) = ask("corrupt", compare_ratio=0)
    assert told == []
    assert (reply.ok, reply.reason) == (False, "recovery.compare_ratio is 0: what is wrong would never be compared")
