"""Memory that a new worker does not get: its processes' on the CPU, the device's on a GPU."""

from __future__ import annotations

import contextlib
import resource
import selectors
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

# the holder of a GPU's free memory has this long to take it
_FULL_S = 120.0


def limit(pid: int, which: int, most_bytes: int) -> Callable[[], None]:
    """Lower a resource limit (resource.RLIMIT_*) of a running process, which its children inherit; returns what undoes
    it."""
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (most_bytes, before[1]))

    def undo() -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, which, before)

    return undo


def mapped_bytes(pid: int) -> int:
    """The size of a process's address space."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


def hoard(device: str) -> Callable[[], None]:
    """Another process takes all memory of a GPU, also what comes free later; returns what ends it."""
    command = (sys.executable, "-P", "-m", "fdmoe_ops.chaos.hoard", device)
    process = subprocess.Popen(command, stdout=subprocess.PIPE)

    def undo() -> None:
        process.kill()
        process.communicate()

    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(_FULL_S) or process.stdout.readline() != b"full\n":
            undo()
            raise TimeoutError(f"the memory of {device} was not taken within {_FULL_S:g} s")
    return undo
