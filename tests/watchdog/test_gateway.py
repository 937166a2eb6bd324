"""The gateway's process: judged by its silence, whether it has said hello or not."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.gateway import GatewayKeeper
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings

MUTE = (sys.executable, "-c", "import signal; signal.pause()")
_TURN_S = 0.02


@pytest.fixture
def keeper(in_memory: Path) -> Iterator[GatewayKeeper]:
    plan = TreePlan(
        run_dir=in_memory / "run", flight_dir=in_memory / "flights", devices=("cpu",), arena_bytes=4096, drain_s=1.0,
        probe=None, weights_command=MUTE, worker_command=MUTE, gateway_command=MUTE, environment={},
        watchdog=WatchdogSettings(port=0), recovery=RecoverySettings(), chaos=False, version="1.2.3",
        announce=lambda *_: None, prepare=lambda _: None,
    )  # fmt: skip
    keeper = GatewayKeeper(plan, EventLog(), 0.0)
    keeper.tend(0.0)
    yield keeper
    keeper.draining = True
    if keeper.child is not None:
        keeper.child.signal(signal.SIGKILL)
        assert keeper.child.wait(10)


def tend(keeper: GatewayKeeper, start: float, seconds: float) -> float:
    """Turns of that time; when they are over."""
    for turn in range(int(seconds / _TURN_S)):
        keeper.tend(start + turn * _TURN_S)
    return start + seconds


def test_one_that_never_says_hello_is_replaced(keeper: GatewayKeeper) -> None:
    first = keeper.child
    assert first is not None
    now = tend(keeper, 0.0, 29.0)
    assert first.alive
    now = tend(keeper, now, 2.0)
    assert first.wait(10)
    tend(keeper, now, 2.0)
    assert keeper.child is not first
    assert keeper.child is not None
    assert [event["event"] for event in keeper._events.last] == ["gateway_frozen", "gateway_exit"]


def test_a_watchdog_that_was_starved_does_not_take_its_own_sleep_for_the_gateways(keeper: GatewayKeeper) -> None:
    now = tend(keeper, 0.0, 29.0)
    keeper.tend(now + 301.0)
    keeper.tend(now + 301.005)
    assert list(keeper._events.last) == []


def test_one_that_a_signal_holds_before_it_says_hello_is_replaced_at_once(keeper: GatewayKeeper) -> None:
    first = keeper.child
    assert first is not None
    first.signal(signal.SIGSTOP)
    wait_until(lambda: first.stopped)
    tend(keeper, 0.0, 0.05)
    assert first.alive
    tend(keeper, 0.05, 0.05)
    assert first.wait(10)
