"""A child process: what the system says of it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator

import pytest
from waiting import wait_until

from fdmoe_watchdog.process import Child


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child((sys.executable, "-c", "import signal; signal.pause()"), {})
    yield child
    child.signal(signal.SIGKILL)
    assert child.wait(10)


def test_whether_a_signal_holds_it(child: Child) -> None:
    assert not child.stopped
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.stopped)
    child.signal(signal.SIGCONT)
    wait_until(lambda: not child.stopped)


def test_one_that_has_ended_is_not_held(child: Child) -> None:
    child.signal(signal.SIGKILL)
    assert child.wait(10)
    assert not child.stopped
