"""Stacks of a process that does not answer: a real one, whose main thread sits in C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fdmoe_watchdog import stacks
from fdmoe_watchdog.threads import ProcessFacts, ThreadFacts, process_facts

DEADLINE_S = 20.0
# PyDLL keeps the interpreter's lock: no Python code runs in this process any more, in any thread
BLOCKED = """
import ctypes, sys, threading
from pathlib import Path
from fdmoe_watchdog import stacks
def wait_for_ever():
    threading.Event().wait()
threading.Thread(target=wait_for_ever, name="beside", daemon=True).start()
stacks.register(Path(sys.argv[1]))
def sit_in_c():
    print("blocked", flush=True)
    (ctypes.PyDLL if sys.argv[2] == "locked" else ctypes.CDLL)(None).pause()
while True:
    sit_in_c()
"""
UNREGISTERED = "print('blocked', flush=True); import time; time.sleep(60)"


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def run(program: str, *arguments: str | Path) -> subprocess.Popen[str]:
        command = (sys.executable, "-P", "-c", program, *map(str, arguments))
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "blocked\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("lock", ["locked", "unlocked"])
def test_the_stacks_of_a_thread_that_sits_in_c(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], lock: str
) -> None:
    path = tmp_path / "worker-a-g1.stacks"
    process = start(BLOCKED, path, lock)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        assert stacks.request(process.pid, path)
        text = stacks.collect(path, DEADLINE_S)
        # once, though it was asked twice: a request empties the file
        assert [text.count(name) for name in ("in sit_in_c", "in wait_for_ever", "Current thread")] == [1, 1, 1]
    assert process.poll() is None


def test_the_section_of_a_flight_record(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    path = tmp_path / "worker-a-g1.stacks"
    process = start(BLOCKED, path, "locked")
    assert stacks.request(process.pid, path)
    section = stacks.gather(process.pid, path, DEADLINE_S)
    assert "in sit_in_c" in str(section["python"])
    facts = section["process"]
    assert isinstance(facts, dict)
    assert (facts["pid"], facts["count"]) == (process.pid, 2)
    main, beside = facts["threads"]
    assert main["tid"] == process.pid != beside["tid"]
    # the handler may still be running; the other thread sleeps
    assert (main["state"] in ("R", "S"), beside["state"]) == (True, "S")
    assert main["user_s"] + main["system_s"] > 0
    assert beside["voluntary_switches"] >= 1


def test_a_process_that_has_not_registered_gets_no_signal(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(UNREGISTERED)
    assert not stacks.request(process.pid, tmp_path / "worker-a-g1.stacks")
    # SIGUSR1 would have ended it
    assert process.poll() is None
    assert stacks.gather(process.pid, tmp_path / "worker-a-g1.stacks", 0.0)["python"] == ""


def test_a_process_that_has_ended(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    path = tmp_path / "worker-a-g1.stacks"
    process = start(BLOCKED, path, "locked")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not stacks.request(process.pid, path)
    assert stacks.gather(process.pid, path, 0.0) == {"python": "", "process": None}


class Clock:
    """Time passes only in `pause`, which also does what else happens meanwhile."""

    def __init__(self, *happenings: Callable[[], object]) -> None:
        self.now, self.happenings = 100.0, list(happenings)

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds
        if self.happenings:
            self.happenings.pop(0)()


def test_collecting_ends_when_the_text_stops_growing_or_at_the_deadline(tmp_path: Path) -> None:
    path = tmp_path / "stacks"

    def write(text: str) -> Callable[[], object]:
        return lambda: path.open("a").write(text)

    clock = Clock(write("Thread 1\n"), lambda: None, write("Thread 2\n"))
    assert stacks.collect(path, 5.0, clock=clock, pause=clock.pause) == "Thread 1\nThread 2\n"
    assert clock.now - 100.0 == pytest.approx(0.06)
    clock = Clock()
    assert stacks.collect(tmp_path / "none", 0.2, clock=clock, pause=clock.pause) == ""
    assert clock.now - 100.0 == pytest.approx(0.2, abs=0.011)
    path.write_bytes(b"\xff" * 100_000)
    clock = Clock()
    assert stacks.collect(path, 0.2, clock=clock, pause=clock.pause) == "\N{REPLACEMENT CHARACTER}" * 65536


def test_what_proc_says(tmp_path: Path) -> None:
    task = tmp_path / "7/task/7"
    task.mkdir(parents=True)
    (tmp_path / "7/task/9").mkdir()
    (tmp_path / "7/task/noise").mkdir()
    ticks = os.sysconf("SC_CLK_TCK")
    (task / "stat").write_text(f"7 (pt main) (x)) D 1 7 7 0 -1 4194560 1 2 3 4 {3 * ticks} {ticks} 0 0 20 0 1 0\n")
    (task / "status").write_text("Name:\tx\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n")
    (task / "wchan").write_text("uvm_ioctl")
    (task / "stack").write_text("[<0>] uvm_ioctl+0x1/0x2\n")
    assert process_facts(7, tmp_path) == ProcessFacts(
        7,
        2,
        (
            ThreadFacts(
                tid=7, name="pt main) (x)", state="D", waits_in="uvm_ioctl", kernel_stack="[<0>] uvm_ioctl+0x1/0x2",
                user_s=3.0, system_s=1.0, voluntary_switches=12, involuntary_switches=3,
            ),
            ThreadFacts(tid=9),
        ),
    )  # fmt: skip
    (task / "stat").write_text("7 (cut")
    (task / "wchan").write_text("0")
    facts = process_facts(7, tmp_path)
    assert facts is not None
    assert (facts.threads[0].name, facts.threads[0].waits_in, facts.threads[0].user_s) == ("", "", None)
    assert process_facts(8, tmp_path) is None
