"""The spare process: kept while both workers serve, used once, and never in the way."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator

import pytest
from waiting import wait_until

from fdmoe_watchdog.events import BoundEvents, EventLog
from fdmoe_watchdog.spare import SpareKeeper
from fdmoe_watchdog.status import SpareView

# says what it was told to become by its exit code
TOLD = """
import json, os, sys
assert sys.argv[-2] == "--spare"
os.write(int(sys.argv[-1]), b"\\n")
line = sys.stdin.readline()
sys.exit(len(json.loads(line)) if line else 0)
"""
# says that it is ready once it knows what it is to become
LATE = """
import contextlib, json, os, sys
line = sys.stdin.readline()
with contextlib.suppress(BrokenPipeError):
    os.write(int(sys.argv[-1]), b"\\n")
    sys.exit(9)
sys.exit(len(json.loads(line)))
"""
ENDS = "import sys; sys.exit(5)"


@pytest.fixture
def events() -> Iterator[EventLog]:
    log = EventLog()
    yield log
    log.close()


def keeper(events: EventLog, script: str = TOLD, *, wanted: bool = True) -> SpareKeeper:
    return SpareKeeper((sys.executable, "-c", script), {}, BoundEvents(events, device="cpu"), wanted=wanted)


def test_it_is_started_once_both_workers_serve_and_becomes_a_worker_once(events: EventLog) -> None:
    spares = keeper(events)
    spares.tend(0.0, whole=False)
    assert spares.take() is None
    assert spares.view == SpareView(state="absent")
    spares.tend(1.0, whole=True)
    first = spares.child
    assert first is not None
    wait_until(lambda: spares.view.state == "ready")
    assert spares.view.pid == first.pid
    spares.tend(2.0, whole=True)
    assert spares.child is first
    taken = spares.take()
    assert taken is first
    assert spares.take() is None
    process = taken.become(("--weights", "m", "--name", "a", "--generation", "7"))
    assert process is not None
    assert process.wait(10) == 6
    spares.tend(3.0, whole=False)
    assert spares.child is None, "the worker comes first"
    spares.tend(4.0, whole=True)
    assert spares.child is not None
    spares.child.signal(signal.SIGKILL)
    assert spares.child.wait(10)
    assert list(events.last) == []


def test_one_that_ends_by_itself_is_news_and_not_tried_again_at_once(events: EventLog) -> None:
    spares = keeper(events, ENDS)
    spares.tend(0.0, whole=True)
    assert spares.child is not None
    assert spares.child.wait(10)
    assert spares.take() is None
    spares.tend(1.0, whole=True)
    assert [(event["event"], event["exit_code"]) for event in events.last] == [("spare_gone", 5)]
    spares.tend(60.9, whole=True)
    assert spares.child is None
    spares.tend(61.0, whole=True)
    assert spares.child is not None
    assert spares.child.wait(10)


def test_one_that_still_imports_becomes_a_worker_all_the_same(events: EventLog) -> None:
    """Nobody listens any more when it says that it is ready."""
    spares = keeper(events, LATE)
    spares.tend(0.0, whole=True)
    assert spares.view.state == "starting"
    spare = spares.take()
    assert spare is not None
    process = spare.become(("--name", "a"))
    assert process is not None
    assert process.wait(10) == 2


def test_one_that_has_just_ended_becomes_nothing(events: EventLog) -> None:
    spares = keeper(events, ENDS)
    spares.tend(0.0, whole=True)
    spare = spares.child
    assert spare is not None
    assert spare.wait(10)
    assert spare.become(("--weights", "m")) is None


def test_without_a_program_or_a_wish_there_is_none(events: EventLog) -> None:
    unwanted = keeper(events, wanted=False)
    unwanted.tend(0.0, whole=True)
    assert unwanted.child is None
    assert unwanted.view == SpareView(state="off")
    missing = SpareKeeper(("/nonexistent",), {}, BoundEvents(events, device="cpu"), wanted=True)
    missing.tend(0.0, whole=True)
    missing.tend(1.0, whole=True)
    assert [event["event"] for event in events.last] == ["spare_not_started"]
    assert json.dumps(events.last[0]).count("nonexistent") == 1
