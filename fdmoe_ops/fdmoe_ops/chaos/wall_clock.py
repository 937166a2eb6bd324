"""A wall clock for one tree that can be set, while the machine's stays right: a library that its processes load first.

Setting a clock needs the machine; a namespace has none of its own for this one (Linux gives those to the monotonic and
boot clocks). So the calls of libc that tell the time are taken over (wall_clock.c), for all code of a process and not
for Python's alone. It is compiled when it is used: a C compiler is needed, as Triton needs one on a GPU.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

COMPILER = "cc"
_SOURCE = Path(__file__).with_name("wall_clock.c")
_COMPILE_S = 60.0


def can_be_set() -> bool:
    """Whether the library can be built here."""
    return shutil.which(COMPILER) is not None


class WallClock:
    """As a context manager. `environment` is for `fdmoe serve`, whose children inherit it."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="fdmoe-wall-clock-")
        self._library = Path(self._directory.name) / "wall_clock.so"
        offset = Path(self._directory.name) / "offset"
        offset.write_bytes(bytes(8))
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(self._library), "FDMOE_WALL_CLOCK": str(offset)}

    def __enter__(self) -> WallClock:
        command = (COMPILER, "-O2", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE))
        subprocess.run(command, check=True, timeout=_COMPILE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._offset.close()
        self._directory.cleanup()

    def set(self, seconds: int) -> None:
        """So far ahead of the machine's clock, in all processes at once; behind it where it is negative."""
        self._offset[:] = struct.pack("=q", seconds)

    def is_of(self, pid: int) -> bool:
        """Whether the process has this clock."""
        return str(self._library) in Path(f"/proc/{pid}/maps").read_text()
