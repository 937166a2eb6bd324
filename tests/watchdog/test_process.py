"""A child process: what the system says of it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from fdmoe_watchdog import proc
from fdmoe_watchdog.proc import Stat, StatFile
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


def test_for_how_long_is_counted_from_the_first_look_and_anew_each_time(child: Child) -> None:
    assert child.held_s(5.0) == 0
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.stopped)
    assert [child.held_s(now) for now in (6.0, 6.5, 8.0)] == [0, 0.5, 2.0]
    child.signal(signal.SIGCONT)
    wait_until(lambda: not child.stopped)
    assert child.held_s(9.0) == 0
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.stopped)
    assert [child.held_s(now) for now in (10.0, 10.25)] == [0, 0.25]
    # a sign of life in between: it is not looked at, and what it was held before does not count
    assert [child.held_s(now, silent_s) for now, silent_s in ((11.0, 0.02), (20.0, 0.06), (20.1, 0.16))] == [
        0, 0, pytest.approx(0.1),
    ]  # fmt: skip


def test_one_that_has_ended_is_not_held(child: Child) -> None:
    child.signal(signal.SIGKILL)
    assert child.wait(10)
    assert not child.stopped


def test_whether_all_of_it_sleeps() -> None:
    """One thread that runs is enough: the one that sleeps may be waiting for it."""
    program = (
        "import sys, threading, time\n"
        "def spin():\n"
        "    until = time.monotonic() + 60\n"
        "    while not stop.is_set() and time.monotonic() < until: pass\n"
        "for _ in sys.stdin:\n"
        "    stop = threading.Event()\n"
        "    thread = threading.Thread(target=spin)\n"
        "    thread.start()\n"
        "    sys.stdin.readline()\n"
        "    stop.set()\n"
        "    thread.join()\n"
    )
    child = Child((sys.executable, "-c", program), {}, stdin=subprocess.PIPE)
    pipe = child._process.stdin
    assert pipe is not None
    with pipe:
        wait_until(lambda: child.asleep)
        for asleep in (False, True):
            pipe.write(b"\n")
            pipe.flush()
            wait_until(lambda wanted=asleep: child.asleep is wanted)  # type: ignore[misc]
        child.signal(signal.SIGSTOP)
        wait_until(lambda: child.stopped)
        assert not child.asleep, "held, and not asleep"
        child.signal(signal.SIGKILL)
    assert child.wait(10)
    assert not child.asleep


def test_its_end_is_seen_before_it_is_reaped(child: Child) -> None:
    assert not child.ending
    child.signal(signal.SIGSTOP)
    wait_until(lambda: child.stopped)
    assert not child.ending
    child.signal(signal.SIGKILL)
    wait_until(lambda: child.ending)
    assert child.exit_code is None
    assert child.wait(10)


@pytest.mark.parametrize(
    ("text", "stat"),
    [
        ("7 (worker) S 1 7 7 0 -1 4194560 1 0", Stat("S", exiting=False)),
        # PF_EXITING: it still gives back what it had mapped
        ("7 (worker) D 1 7 7 0 -1 4194564 1 0", Stat("D", exiting=True)),
        # PF_DUMPCORE and PF_POSTCOREDUMP: it writes a core first
        ("7 (worker) R 1 7 7 0 -1 4195840 1 0", Stat("R", exiting=True)),
        ("7 (worker) I 1 7 7 0 -1 4195336 1 0", Stat("I", exiting=True)),
        # its other threads end still
        ("7 (worker) Z 1 7 7 0 -1 4194560 1 0", Stat("Z", exiting=True)),
        ("7 (a name) S 4 4) T 1 7 7 0 -1 256 1 0", Stat("T", exiting=False)),
        ("7 (worker) S 1", Stat()),
        ("", Stat()),
    ],
)
def test_what_the_system_tells_of_it(text: str, stat: Stat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text(text)
    assert StatFile(7).read() == stat


def test_where_there_is_no_proc_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "PROC", tmp_path)
    assert StatFile(7).read() == Stat()
