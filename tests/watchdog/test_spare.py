"""Spare processes: started while both workers serve, used once, and never in the way."""

from __future__ import annotations

import json
import signal
import sys

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
def events() -> EventLog:
    return EventLog()


def keeper(events: EventLog, script: str = TOLD, *, wanted: int = 1) -> SpareKeeper:
    return SpareKeeper((sys.executable, "-c", script), {}, BoundEvents(events, device="cpu"), wanted=wanted)


def states(spares: SpareKeeper) -> list[str]:
    return [view.state for view in spares.views]


def end(spares: SpareKeeper) -> None:
    for spare in spares.there:
        spare.signal(signal.SIGKILL)
        assert spare.wait(10)


def test_it_is_started_once_both_workers_serve_and_becomes_a_worker_once(events: EventLog) -> None:
    spares = keeper(events)
    spares.tend(0.0, quiet=False)
    assert spares.take() is None
    assert spares.views == (SpareView(0, "absent"),)
    spares.tend(1.0, quiet=True)
    (first,) = spares.there
    wait_until(lambda: spares.views == (SpareView(first.pid, "ready"),))
    spares.tend(2.0, quiet=True)
    assert spares.there == [first]
    taken = spares.take()
    assert taken is first
    assert spares.take() is None
    process = taken.become(("--weights", "m", "--name", "a", "--generation", "7"))
    assert process is not None
    assert process.wait(10) == 6
    spares.tend(3.0, quiet=False)
    assert spares.there == [], "the worker comes first"
    spares.tend(4.0, quiet=True)
    assert len(spares.there) == 1
    end(spares)
    assert list(events.last) == []


def test_two_are_started_one_after_the_other_and_both_workers_may_die_at_once(events: EventLog) -> None:
    spares = keeper(events, wanted=2)
    spares.tend(0.0, quiet=True)
    (first,) = spares.there
    wait_until(lambda: states(spares) == ["ready", "absent"])
    spares.tend(1.0, quiet=True)
    wait_until(lambda: states(spares) == ["ready", "ready"])
    second = spares.there[1]
    spares.tend(2.0, quiet=True)
    assert spares.there == [first, second]
    assert [spares.take(), spares.take(), spares.take()] == [first, second, None]
    for spare in (first, second):
        process = spare.become(("--weights", "m"))
        assert process is not None
        assert process.wait(10) == 2


def test_the_second_waits_until_the_first_has_imported(events: EventLog) -> None:
    spares = keeper(events, LATE, wanted=2)
    spares.tend(0.0, quiet=True)
    spares.tend(1.0, quiet=True)
    assert states(spares) == ["starting", "absent"]
    end(spares)
    spares.tend(2.0, quiet=False)
    assert [event["event"] for event in events.last] == ["spare_gone"]


def test_one_of_two_that_was_killed_takes_nothing_from_the_other(events: EventLog) -> None:
    spares = keeper(events, wanted=2)
    spares.tend(0.0, quiet=True)
    wait_until(lambda: states(spares) == ["ready", "absent"])
    spares.tend(1.0, quiet=True)
    first, second = spares.there
    first.signal(signal.SIGKILL)
    assert first.wait(10)
    assert spares.take() is second
    second.signal(signal.SIGKILL)
    assert second.wait(10)
    assert spares.reap() == [first]
    assert spares.there == []


def test_one_that_ends_by_itself_is_news_and_not_tried_again_at_once(events: EventLog) -> None:
    spares = keeper(events, ENDS)
    spares.tend(0.0, quiet=True)
    assert spares.there[0].wait(10)
    assert spares.take() is None
    spares.tend(1.0, quiet=True)
    assert [(event["event"], event["exit_code"]) for event in events.last] == [("spare_gone", 5)]
    spares.tend(60.9, quiet=True)
    assert spares.there == []
    spares.tend(61.0, quiet=True)
    assert spares.there[0].wait(10)


def test_one_that_still_imports_becomes_a_worker_all_the_same(events: EventLog) -> None:
    """Nobody listens any more when it says that it is ready."""
    spares = keeper(events, LATE)
    spares.tend(0.0, quiet=True)
    assert states(spares) == ["starting"]
    spare = spares.take()
    assert spare is not None
    process = spare.become(("--name", "a"))
    assert process is not None
    assert process.wait(10) == 2


def test_one_that_has_just_ended_becomes_nothing(events: EventLog) -> None:
    spares = keeper(events, ENDS)
    spares.tend(0.0, quiet=True)
    (spare,) = spares.there
    assert spare.wait(10)
    assert spare.become(("--weights", "m")) is None


def test_without_a_program_or_a_wish_there_is_none(events: EventLog) -> None:
    unwanted = keeper(events, wanted=0)
    unwanted.tend(0.0, quiet=True)
    assert (unwanted.there, unwanted.views) == ([], ())
    missing = SpareKeeper(("/nonexistent",), {}, BoundEvents(events, device="cpu"), wanted=2)
    missing.tend(0.0, quiet=True)
    missing.tend(1.0, quiet=True)
    assert [event["event"] for event in events.last] == ["spare_not_started"]
    assert json.dumps(events.last[0]).count("nonexistent") == 1
