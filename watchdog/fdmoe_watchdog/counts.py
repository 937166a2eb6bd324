"""The count page: what a worker has computed, kept where it can be read whatever the worker does.

One file per worker generation beside its beat page, made and written by the worker alone. Little-endian 64-bit words:

    0..7                     magic, version, generation, layers, experts, changes, bytes moved, reserved
    2 x 24 x (BOUNDS + 2)    per path and token bucket: launches within each bound of time, beyond the last, nanoseconds
    layers x experts         tokens that each routed expert has computed on the fused path

- changes: rises after each change, so that a reader can leave out a page that is as it was.
- bytes moved: by fused launches, as fdmoe_kernels.Workspace.bytes_moved counts them.

Every word only grows: a reader that comes between two stores sees a moment of a launch, and the rest the next time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from pathlib import Path
from typing import get_args

from fdmoe_watchdog.buckets import token_bucket
from fdmoe_watchdog.messages import Path as ServingPath

MAGIC = int.from_bytes(b"fdmoe-cp", "little")
VERSION = 1
WORD_BYTES = 8
# the fused and the baseline path compute; the shadow is both of them
PATHS: tuple[ServingPath, ...] = ("fused", "baseline")
TOKEN_BUCKETS = tuple(1 << power for power in range(24))
# seconds, five to a decade: from a few launches of the smallest layer to what counts as a stall anywhere
BOUNDS = (*(round(step * 10.0**power, 6) for power in range(-5, 1) for step in (1, 1.6, 2.5, 4, 6.3)), 10.0)
assert set(PATHS) < set(get_args(ServingPath))

# nanoseconds of four years; the words of a hundred workers still add up within 64 bits
_NO_COUNT = 1 << 57
_BOUNDS_NS = tuple(round(bound * 1e9) for bound in BOUNDS)
_DURATION_WORDS = len(BOUNDS) + 2


class Head(IntEnum):
    """Words of the page's head."""

    MAGIC = 0
    VERSION = 1
    GENERATION = 2
    LAYERS = 3
    EXPERTS = 4
    CHANGES = 5
    BYTES_MOVED = 6


_HEAD_WORDS = 8
_DURATIONS_WORDS = len(PATHS) * len(TOKEN_BUCKETS) * _DURATION_WORDS
_FIRST_TOKEN_WORD = _HEAD_WORDS + _DURATIONS_WORDS


class CountsError(ValueError):
    """The file is not a count page of this layout."""


@dataclass(frozen=True)
class Counts:
    """What a page holds, or several together: `number` is all words behind the head as one long number. To add two of
    them takes a tenth of the time that the words one by one do; none comes near its highest bit (_NO_COUNT), so nothing
    is carried into the next."""

    bytes_moved: int
    number: int
    words: int

    @classmethod
    def of(cls, bytes_moved: int, body: bytes) -> Counts:
        return cls(bytes_moved, int.from_bytes(body, sys.byteorder), len(body) // WORD_BYTES)

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.bytes_moved + other.bytes_moved, self.number + other.number, self.words)

    def tokens_since(self, earlier: Counts) -> array[int]:
        """[layers x experts]; words only grow."""
        return _words(self.number - earlier.number, self.words)[_DURATIONS_WORDS:]

    @cached_property
    def _all(self) -> array[int]:
        return _words(self.number, self.words)

    @cached_property
    def tokens(self) -> array[int]:
        """[layers x experts]"""
        return self._all[_DURATIONS_WORDS:]

    def launches(self, path: ServingPath, bucket: int) -> tuple[Sequence[int], float]:
        """Launches within each of BOUNDS and beyond, not cumulated, and the seconds of all of them."""
        start = _duration_word(path, bucket)
        words = self._all[start : start + _DURATION_WORDS]
        return words[:-1], words[-1] / 1e9


def nothing(layers: int, experts: int) -> Counts:
    return Counts(0, 0, _DURATIONS_WORDS + layers * experts)


def counts_path(page: Path) -> Path:
    """Where the worker of this beat page has its count page."""
    return page.with_suffix(".counts")


class CountPage:
    """The page as its worker writes it, mapped into memory."""

    def __init__(self, path: Path, *, generation: int, layers: int, experts: int) -> None:
        """Makes the file (mode 0600), which must not exist yet; raises OSError."""
        self.layers, self.experts = layers, experts
        size = (_FIRST_TOKEN_WORD + layers * experts) * WORD_BYTES
        head = struct.pack("<5Q", MAGIC, VERSION, generation, layers, experts)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # the memory itself: a tmpfs that is full says so here, and not by SIGBUS at a write
            os.posix_fallocate(descriptor, 0, size)
            os.pwrite(descriptor, head, 0)
            self._words = memoryview(mmap.mmap(descriptor, size)).cast("Q")
        finally:
            os.close(descriptor)

    def ran(self, path: ServingPath, tokens: int, duration_ns: int) -> None:
        """One launch of a layer has ended."""
        words = self._words
        start = _HEAD_WORDS + _duration_word(path, min(token_bucket(tokens), TOKEN_BUCKETS[-1]))
        words[start + bisect_left(_BOUNDS_NS, duration_ns)] += 1
        words[start + _DURATION_WORDS - 1] += duration_ns
        words[Head.CHANGES] += 1

    def computed(self, layer: int, expert_tokens: Sequence[int], bytes_moved: int) -> None:
        """Add what fused launches of a layer, by its index, have computed: tokens of each routed expert, and bytes."""
        words = self._words
        start = _FIRST_TOKEN_WORD + layer * self.experts
        for expert, tokens in enumerate(expert_tokens):
            if tokens:
                words[start + expert] += tokens
        words[Head.BYTES_MOVED] += bytes_moved
        words[Head.CHANGES] += 1


class CountFile:
    """The page as a reader has it: read as a file, for who maps one dies with it when somebody cuts it short."""

    def __init__(self, path: Path, *, layers: int, experts: int) -> None:
        """Raises OSError, or CountsError for a file that is no count page of so many layers and experts."""
        self.path, self.layers, self.experts = path, layers, experts
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._last = nothing(layers, experts)
        self._changes = 0
        try:
            self.read()
        except (CountsError, OSError):
            self.close()
            raise

    def read(self) -> Counts:
        """What is there now. Raises OSError or CountsError; `last` stays what was read before."""
        head = os.pread(self._descriptor, _HEAD_WORDS * WORD_BYTES, 0)
        words = struct.unpack_from("<8Q", head) if len(head) == _HEAD_WORDS * WORD_BYTES else (0,) * _HEAD_WORDS
        expected = (MAGIC, VERSION, self.layers, self.experts)
        found = (words[Head.MAGIC], words[Head.VERSION], words[Head.LAYERS], words[Head.EXPERTS])
        if found != expected:
            raise CountsError(f"{self.path}: magic, version, layers and experts are {found}; {expected} is needed")
        if words[Head.CHANGES] == self._changes:
            return self._last
        wanted = self._last.words * WORD_BYTES
        body = os.pread(self._descriptor, wanted, _HEAD_WORDS * WORD_BYTES)
        if len(body) != wanted:
            raise CountsError(f"{self.path}: it ends after {len(head) + len(body)} bytes")
        counts = Counts.of(words[Head.BYTES_MOVED], body)
        if counts.number & _no_count_bits(counts.words):
            raise CountsError(f"{self.path}: a word of it is more than anything has ever counted")
        self._last = counts
        self._changes = words[Head.CHANGES]
        return self._last

    @property
    def last(self) -> Counts:
        return self._last

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def _duration_word(path: ServingPath, bucket: int) -> int:
    return (PATHS.index(path) * len(TOKEN_BUCKETS) + bucket.bit_length() - 1) * _DURATION_WORDS


def _words(number: int, words: int) -> array[int]:
    return array("Q", number.to_bytes(words * WORD_BYTES, sys.byteorder))


@lru_cache
def _no_count_bits(words: int) -> int:
    """The bits that no word has, of so many words."""
    high = (1 << 8 * WORD_BYTES) - _NO_COUNT
    return int.from_bytes(array("Q", [high]) * words, sys.byteorder)
