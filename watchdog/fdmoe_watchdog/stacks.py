"""The stacks of a worker that does not answer: Python's, as it writes them itself, and its threads as /proc sees them.

A worker registers a signal for faulthandler, whose handler runs in C: it writes the stacks although the main thread
sits in a call that does not return to Python. The watchdog sends the signal, goes on, and reads the file later, in a
thread of its own.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fdmoe_watchdog.threads import ProcessFacts, process_facts

_SIGNAL = signal.SIGUSR1
_MAX_BYTES = 64 * 1024
# between two looks at the file, and how long it must not grow to count as whole
_LOOK_S = 0.01
_WHOLE_S = 0.03


class Stacks(msgspec.Struct, frozen=True):
    """A flight record's section. `python`: faulthandler's text, most recent call first; "" where none was to be had."""

    python: str = ""
    process: ProcessFacts | None = None


def register(path: Path) -> None:
    """In the worker, early: write the Python stacks of all threads to `path` (mode 0600) whenever SIGUSR1 comes.

    The file appears only when the handler is there, since without one the signal would end the process. Raises OSError
    where the file cannot be made.
    """
    partial = path.with_name(path.name + ".partial")
    # O_APPEND: the watchdog empties the file before each request
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    # the descriptor stays open, for the handler, until the process ends
    faulthandler.register(_SIGNAL, file=descriptor, all_threads=True, chain=False)
    os.replace(partial, path)


def request(pid: int, path: Path) -> bool:
    """Ask a process that has not been reaped yet; whether it was asked. Does not wait, and raises nothing."""
    try:
        os.truncate(path, 0)
        os.kill(pid, _SIGNAL)
    except OSError:
        # it has not registered, or it has ended
        return False
    return True


def collect(
    path: Path,
    deadline_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> str:
    """What the process has written by the deadline, at most 64 KiB; returns as soon as the text has stopped growing.

    Blocks; for a background thread. "" where there is nothing.
    """
    started = changed = clock()
    size = 0
    while (now := clock()) - started < deadline_s:
        with contextlib.suppress(OSError):
            if (latest := path.stat().st_size) != size:
                size, changed = latest, now
        if size and now - changed >= _WHOLE_S:
            break
        pause(_LOOK_S)
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(_MAX_BYTES).decode(errors="replace")
    return ""


def gather(pid: int, path: Path, deadline_s: float) -> dict[str, object]:
    """The section for a flight record, after `request`. Blocks as `collect` does; /proc is read first."""
    process = process_facts(pid)
    section: dict[str, object] = msgspec.to_builtins(Stacks(collect(path, deadline_s), process))
    return section
