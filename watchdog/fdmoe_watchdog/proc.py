"""What /proc tells, where it can be had."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
# what a thread's state is called in proc_pid_stat(5): it waits, or a signal holds it
SLEEPS, STOPPED = "S", "T"
_STATE, _FLAGS = 0, 6  # of the fields behind the name
# PF_EXITING, PF_POSTCOREDUMP (before Linux 5.6 PF_EXITPIDONE) and PF_DUMPCORE of Linux's include/linux/sched.h: a core
# may take seconds to write before the end itself begins
_EXITING = 0x4 | 0x8 | 0x200
_MOST_BYTES = 4096


def text_of(path: Path) -> str:
    """The file's text without the space around it; "" where there is none, or it may not be read."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def split_stat(line: str) -> tuple[str, list[str]]:
    """Of a stat file the name and the fields behind it; a name may hold spaces and parentheses."""
    head, found, tail = line.rpartition(")")
    return (head.partition("(")[2], tail.split()) if found else ("", [])


class Stat(NamedTuple):
    """state    of a process's main thread, one letter (proc_pid_stat(5)); "" where nothing is told
    exiting  it has begun to end, or has ended
    """

    state: str = ""
    exiting: bool = False


def asleep(pid: int) -> bool:
    """Whether each thread of a process waits for something: none of them runs, or is about to, or waits for a disk."""
    try:
        threads = os.listdir(PROC / str(pid) / "task")
    except OSError:
        return False
    # of a thread that ends meanwhile nothing is told
    return all(StatFile(f"{pid}/task/{thread}").read().state in (SLEEPS, "") for thread in threads)


class StatFile:
    """/proc/PID/stat, opened once: it is read at each turn, and never tells of another process with the same number.
    `pid`: or PID/task/TID, for one of its threads."""

    def __init__(self, pid: int | str) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open(PROC / str(pid) / "stat", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> Stat:
        """Nothing is told of a process that has been reaped."""
        try:
            _, fields = split_stat(os.pread(self._fd, _MOST_BYTES, 0).decode(errors="replace"))
            state = fields[_STATE]
            return Stat(state, state in ("Z", "X") or bool(int(fields[_FLAGS]) & _EXITING))
        except (OSError, IndexError, ValueError):
            return Stat()

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
