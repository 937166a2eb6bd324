"""A child process: what the system says of it."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from fdmoe_watchdog.process import Child


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child((sys.executable, "-c", "import signal; signal.pause()"), {})
    yield child
    child.signal(signal.SIGKILL)
    assert child.wait(10)


def _becomes(child: Child, stopped: bool) -> None:
    deadline = time.monotonic() + 10
    while child.stopped is not stopped:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_whether_a_signal_holds_it(child: Child) -> None:
    assert not child.stopped
    child.signal(signal.SIGSTOP)
    _becomes(child, stopped=True)
    child.signal(signal.SIGCONT)
    _becomes(child, stopped=False)


def test_one_that_has_ended_is_not_held(child: Child) -> None:
    child.signal(signal.SIGKILL)
    assert child.wait(10)
    assert not child.stopped
