"""What /proc says of a process and its threads: where each is, in the kernel's eyes. Where it can be had."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from fdmoe_watchdog.proc import PROC, split_stat, text_of

_MAX_THREADS = 64
# of a line of /proc/PID/stat, counted behind the name, which may hold anything
_STATE, _USER_TICKS, _SYSTEM_TICKS = 0, 11, 12


class ThreadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One thread. `state`: R, S, D, ... of proc(5). `waits_in`: the kernel function it sleeps in. `kernel_stack` needs
    a privilege that the watchdog rarely has. What was not to be had is empty or None."""

    tid: int
    name: str = ""
    state: str = ""
    waits_in: str = ""
    kernel_stack: str = ""
    user_s: float | None = None
    system_s: float | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None


class ProcessFacts(msgspec.Struct, frozen=True):
    """The threads by their ids, at most 64 of `count`; the process's main thread has its pid."""

    pid: int
    count: int
    threads: tuple[ThreadFacts, ...]


def process_facts(pid: int, proc: Path = PROC) -> ProcessFacts | None:
    """None where there is no such process, or nothing may be read of it. Raises nothing."""
    tasks = proc / str(pid) / "task"
    try:
        ids = sorted(int(name) for name in os.listdir(tasks) if name.isdecimal())
    except OSError:
        return None
    return ProcessFacts(pid, len(ids), tuple(_thread(tasks / str(tid), tid) for tid in ids[:_MAX_THREADS]))


def _thread(task: Path, tid: int) -> ThreadFacts:
    name, fields = split_stat(text_of(task / "stat"))
    counts = dict(line.split(":", 1) for line in text_of(task / "status").splitlines() if ":" in line)
    waits_in = text_of(task / "wchan")
    return ThreadFacts(
        tid=tid,
        name=name,
        state=fields[_STATE] if fields else "",
        waits_in="" if waits_in == "0" else waits_in,
        kernel_stack=text_of(task / "stack"),
        user_s=_seconds(fields, _USER_TICKS),
        system_s=_seconds(fields, _SYSTEM_TICKS),
        voluntary_switches=_number(counts.get("voluntary_ctxt_switches", "")),
        involuntary_switches=_number(counts.get("nonvoluntary_ctxt_switches", "")),
    )


def _seconds(fields: list[str], index: int) -> float | None:
    ticks = _number(fields[index]) if len(fields) > index else None
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdecimal() else None
