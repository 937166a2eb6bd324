"""The arena: one shared-memory file that holds the tensors of all requests that are waited for.

The watchdog makes it, every process of the tree maps it, and the gateway alone decides who gets which part of it
(`Allocator`). Workers read inputs and write outputs at the byte offsets that a Batch names.
"""

from __future__ import annotations

import bisect
import mmap
import os
from pathlib import Path

# two areas never share a cache line, and a copy engine's 128-byte bursts start where an area starts
ALIGNMENT_BYTES = 256


class ArenaError(ValueError):
    """The file cannot be used as an arena; the message says why."""


class ArenaFull(RuntimeError):
    """No free area is large enough now."""


class Arena:
    """The mapped file. `view` is its bytes, writable."""

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.path = path
        self._mapped = mapped
        self.view = memoryview(mapped)

    @classmethod
    def open(cls, path: Path) -> Arena:
        """Map an existing arena. Raises OSError, or ArenaError for a file that is too small to be one."""
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size < ALIGNMENT_BYTES:
                raise ArenaError(f"{path}: {size} bytes; an arena has at least {ALIGNMENT_BYTES}")
            return cls(path, mmap.mmap(file.fileno(), size))

    @property
    def size_bytes(self) -> int:
        return len(self._mapped)

    def area(self, offset: int, size_bytes: int) -> memoryview:
        """The bytes of one area. Release the view before the arena is closed."""
        return self.view[offset : offset + size_bytes]

    def close(self) -> None:
        self.view.release()
        self._mapped.close()


class Allocator:
    """Who has which part of the arena: first fit over a free list whose neighbours are joined on release.

    Offsets and sizes are multiples of ALIGNMENT_BYTES. First fit keeps the low addresses busy: their memory pages are
    mapped already, and a fresh one costs a page fault per 4096 bytes.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes - size_bytes % ALIGNMENT_BYTES
        self.free_bytes = self.size_bytes
        self._free: list[tuple[int, int]] = [(0, self.size_bytes)]  # (offset, size), by offset; no two touch
        self._taken: dict[int, int] = {}

    def allocate(self, size_bytes: int) -> int:
        """The offset of an area of at least `size_bytes` (1 or more). Raises ArenaFull."""
        assert size_bytes >= 1, f"an area of {size_bytes} bytes"
        size = round_up(size_bytes)
        for index, (offset, free) in enumerate(self._free):
            if free >= size:
                self._free[index : index + 1] = [(offset + size, free - size)] if free > size else []
                self._taken[offset] = size
                self.free_bytes -= size
                return offset
        largest = max((free for _, free in self._free), default=0)
        raise ArenaFull(f"{size} bytes are wanted; the largest free area of the arena has {largest}")

    def release(self, offset: int) -> None:
        """Give back what `allocate` returned. Anything else, and twice, is a mistake of this program."""
        assert offset in self._taken, f"no area starts at {offset}"
        size = self._taken.pop(offset)
        self.free_bytes += size
        index = bisect.bisect_left(self._free, (offset, 0))
        if index < len(self._free) and self._free[index][0] == offset + size:
            size += self._free.pop(index)[1]
        if index > 0 and sum(self._free[index - 1]) == offset:
            index -= 1
            before_offset, before_size = self._free.pop(index)
            offset, size = before_offset, before_size + size
        self._free.insert(index, (offset, size))


def round_up(size_bytes: int) -> int:
    """What an area of this size takes of the arena."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
