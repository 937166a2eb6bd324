"""The beat page: the shared memory between a MoE kernel, its worker and the watchdog.

One file per worker generation in a tmpfs run directory, mapped by all, registered with `cudaHostRegister` in the
worker. Little-endian 64-bit words in lines of 64 bytes, one writer a line:

    line  writer    word 0     1            2        3         4           5             6          7
    0     worker    magic      version      pid      generation  slots
    1     watchdog  abort launch
    2     worker    begun      begun at/ns  tokens   layer     deadline/ns
    3     kernel    ended      exit         route    up        down        combine
    4     worker    stage      host beats   answered baseline begun  baseline ended  fused batches  baseline batches
    5     gateway   submitted
    6..7  reserved
    8+c   CTA c     launch     ticket+1     phase    expert    tile        wait          seen       items

- abort launch: the launch number that must end; 0: none.
- begun > ended: a launch is outstanding. Launches are numbered from 1 in the order of the worker's stream.
- exit: launch number << 8 | Exit, so that a reader can tell a fresh exit code from the last launch's.
- route, up, down, combine: work items finished since the worker started, counted by the kernel.
- expert: its number; all bits: the item is of all experts, as a down item of one token may be.
- tile: row tile << 32 | column tile. wait: Wait << 32 | the count that is waited for; seen: the count when last looked.
- host beats: rises when the worker's thread begins to wait for the device or for messages, and when it has waited; odd
  in between. answered, submitted: batches.

A beat is a CHANGE of a device-written word; time is the reader's own monotonic clock (begun at: CLOCK_MONOTONIC of the
worker, which is one clock for all processes of a host).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Self

MAGIC = int.from_bytes(b"fdmoe-bp", "little")
VERSION = 2
WORD_BYTES = 8
LINE_WORDS = 8
LINE_BYTES = WORD_BYTES * LINE_WORDS
FIRST_SLOT = 8
# one per CTA: up to four on each multiprocessor of the largest GPU that is sold
GPU_SLOTS = 768


class Line(IntEnum):
    """Lines before the slots."""

    IDENTITY = 0
    ABORT = 1
    LAUNCH = 2
    EXIT = 3
    HOST = 4
    GATEWAY = 5


class Identity(IntEnum):
    MAGIC = 0
    VERSION = 1
    PID = 2
    GENERATION = 3
    SLOTS = 4


class Launch(IntEnum):
    BEGUN = 0
    BEGUN_AT_NS = 1
    TOKENS = 2
    LAYER = 3
    DEADLINE_NS = 4


class ExitWord(IntEnum):
    ENDED = 0
    EXIT = 1
    ROUTE = 2
    UP = 3
    DOWN = 4
    COMBINE = 5


class Host(IntEnum):
    STAGE = 0
    BEATS = 1
    ANSWERED = 2
    BASELINE_BEGUN = 3
    BASELINE_ENDED = 4
    FUSED_BATCHES = 5
    BASELINE_BATCHES = 6


_BEATS_AT = Line.HOST * LINE_WORDS + Host.BEATS
_BEGUN_AT, _BEGUN_NS_AT, _TOKENS_AT, _LAYER_AT = (
    Line.LAUNCH * LINE_WORDS + word for word in (Launch.BEGUN, Launch.BEGUN_AT_NS, Launch.TOKENS, Launch.LAYER)
)


class SlotWord(IntEnum):
    LAUNCH = 0
    TICKET = 1
    PHASE = 2
    EXPERT = 3
    TILE = 4
    WAIT = 5
    SEEN = 6
    ITEMS = 7


class Stage(IntEnum):
    """What a worker is doing; the stages before SERVING have the start-up deadline."""

    STARTING = 0
    LOADING = 1
    COMPILING = 2
    SERVING = 3
    TRIAL = 4  # a kernel that shows whether the device works; before LOADING


class Phase(IntEnum):
    """The work item a CTA holds."""

    NONE = 0
    ROUTE = 1
    UP = 2
    DOWN = 3
    COMBINE = 4
    LEFT = 5


class Wait(IntEnum):
    """What a CTA waits for before it can work on its item."""

    NONE = 0
    ROUTE_TILES = 1
    UP_TILES = 2
    DOWN_TILES = 3


class Exit(IntEnum):
    """How a launch left the device."""

    NONE = 0
    DONE = 1
    ABORTED = 2


class PageError(ValueError):
    """The file is not a beat page of this layout."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One CTA's line, as read at one moment."""

    launch: int
    ticket: int | None
    phase: Phase
    expert: int
    row_tile: int
    column_tile: int
    wait: Wait
    target: int
    seen: int
    items: int


# the expert of an item that is of all of them
ALL_EXPERTS = -1
_ALL_EXPERTS_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All words that decisions are made from, as read at one moment. `slots` is the raw bytes of the slots."""

    pid: int
    generation: int
    abort: int
    begun: int
    begun_at_ns: int
    tokens: int
    layer: int
    deadline_ns: int
    ended: int
    exit: Exit
    items: tuple[int, int, int, int]
    stage: Stage
    host_beats: int
    answered: int
    baseline_begun: int
    baseline_ended: int
    fused_batches: int
    baseline_batches: int
    submitted: int
    slots: bytes

    @property
    def outstanding(self) -> bool:
        """A fused launch has begun and has not ended."""
        return self.begun > self.ended

    @property
    def path_runs(self) -> bool:
        """A fused launch is outstanding, or the baseline has begun and not ended."""
        return self.outstanding or self.baseline_begun > self.baseline_ended

    @property
    def host_waits(self) -> bool:
        """The worker's thread waits for the device or for messages."""
        return self.host_beats % 2 == 1

    @property
    def waiting(self) -> bool:
        """A batch was sent that is not answered."""
        return self.submitted > self.answered


def page_size_bytes(slots: int) -> int:
    """Size of a page with `slots` slots, in whole memory pages (cudaHostRegister wants them)."""
    size = (FIRST_SLOT + slots) * LINE_BYTES
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def _make(path: Path, *, generation: int, slots: int, pid: int) -> None:
    if slots < 1:
        raise ValueError(f"slots is {slots}; a page has at least 1")
    identity = dict.fromkeys(Identity, 0)
    identity |= {Identity.MAGIC: MAGIC, Identity.VERSION: VERSION, Identity.PID: pid}
    identity |= {Identity.GENERATION: generation, Identity.SLOTS: slots}
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # the memory itself, not only the size: a tmpfs that is full says so here, and not by SIGBUS at a write
        os.posix_fallocate(descriptor, 0, page_size_bytes(slots))
        os.pwrite(descriptor, struct.pack(f"<{len(identity)}Q", *identity.values()), 0)
    finally:
        os.close(descriptor)


class _Words(ABC):
    """Words of a page, read and written one by one, so that no reader sees half a word.

    `create` makes the file (mode 0600), which must not exist yet, and `open` takes an existing one and checks its
    identity; both raise OSError, and PageError for a file that is no page of this layout. Close it, or use it as a
    context manager.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, *, generation: int, slots: int, pid: int = 0) -> Self:
        _make(path, generation=generation, slots=slots, pid=pid)
        return cls.open(path)

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> Self: ...

    @abstractmethod
    def read(self, line: int, word: int) -> int: ...

    @abstractmethod
    def write(self, line: int, word: int, value: int) -> None: ...

    @abstractmethod
    def _bytes(self, start: int, size: int) -> bytes:
        """What is there now. Raises PageError when the page is not whole."""

    @property
    @abstractmethod
    def slots(self) -> int: ...

    def add(self, line: int, word: int, amount: int = 1) -> int:
        """Add to a word that this process alone writes; returns the new value."""
        value = self.read(line, word) + amount
        self.write(line, word, value)
        return value

    def exit_of(self, launch: int) -> Exit:
        """How `launch` left the device; NONE while it has not, or when a later one has overwritten it."""
        return _exit_of(launch, self.read(Line.EXIT, ExitWord.EXIT))

    def snapshot(self) -> Snapshot:
        """Raises PageError for what is no page any more."""
        # What the device writes is read before `begun`: a launch that comes between the two reads looks outstanding,
        # never finished before it began, and no slot shows a launch whose begin was not read, in whose place the last
        # one would look silent.
        device = self._bytes(Line.EXIT * LINE_BYTES, (FIRST_SLOT - Line.EXIT + self.slots) * LINE_BYTES)
        host = self._bytes(0, FIRST_SLOT * LINE_BYTES)
        if problem := _problem(host[:LINE_BYTES], page_size_bytes(self.slots)):
            raise PageError(f"{self.path}: {problem}")
        ended: int = memoryview(device).cast("Q")[ExitWord.ENDED]
        return _snapshot(memoryview(host).cast("Q"), ended, device[(FIRST_SLOT - Line.EXIT) * LINE_BYTES :])

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Page(_Words):
    """A beat page mapped into memory, as a worker has it."""

    def __init__(self, path: Path, mapped: mmap.mmap, slots: int) -> None:
        self.path = path
        self.mapped = mapped
        self._slots = slots
        self._words = memoryview(mapped).cast("Q")

    @classmethod
    def open(cls, path: Path) -> Self:
        slots = _check(path)
        with path.open("r+b") as file:
            return cls(path, mmap.mmap(file.fileno(), page_size_bytes(slots)), slots)

    @property
    def slots(self) -> int:
        return self._slots

    def read(self, line: int, word: int) -> int:
        return self._words[line * LINE_WORDS + word]

    def write(self, line: int, word: int, value: int) -> None:
        self._words[line * LINE_WORDS + word] = value

    # A batch writes some twenty words, and that is a part of what beats cost: a worker's writes take the short way.

    def add(self, line: int, word: int, amount: int = 1) -> int:
        at = line * LINE_WORDS + word
        value = self._words[at] + amount
        self._words[at] = value
        return value

    def begin_launch(self, launch: int, *, tokens: int, layer: int, begun_at_ns: int) -> None:
        """Its number comes last: who sees that sees all of its words."""
        words = self._words
        words[_TOKENS_AT], words[_LAYER_AT], words[_BEGUN_NS_AT] = tokens, layer, begun_at_ns
        words[_BEGUN_AT] = launch

    def begin_wait(self) -> None:
        """The worker's thread calls for what may take its time: the device, or the next message."""
        self._words[_BEATS_AT] = (self._words[_BEATS_AT] + 1) | 1

    def end_wait(self) -> None:
        """It has come back, or goes on without having waited."""
        self._words[_BEATS_AT] = (self._words[_BEATS_AT] | 1) + 1

    def slot(self, index: int) -> Slot:
        start = (FIRST_SLOT + index) * LINE_WORDS
        return _slot(list(self._words[start : start + LINE_WORDS]))

    def _bytes(self, start: int, size: int) -> bytes:
        return bytes(self.mapped[start : start + size])

    def close(self) -> None:
        self._words.release()
        # where a tensor still looks at the mapping, it goes with the process
        with contextlib.suppress(BufferError):
            self.mapped.close()


class PageFile(_Words):
    """A beat page read and written as a file, as the watchdog and the gateway have it: whoever maps a file dies with
    SIGBUS when somebody cuts it short, and who reads it is told: reading raises PageError once it is no page any more.
    """

    def __init__(self, path: Path, descriptor: int, slots: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._slots = slots

    @classmethod
    def open(cls, path: Path) -> Self:
        slots = _check(path)
        return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC), slots)

    @property
    def slots(self) -> int:
        return self._slots

    def read(self, line: int, word: int) -> int:
        return int.from_bytes(self._bytes((line * LINE_WORDS + word) * WORD_BYTES, WORD_BYTES), "little")

    def write(self, line: int, word: int, value: int) -> None:
        """Raises OSError where the file was cut short and its file system has no room."""
        os.pwrite(self._descriptor, value.to_bytes(WORD_BYTES, "little"), (line * LINE_WORDS + word) * WORD_BYTES)

    def _bytes(self, start: int, size: int) -> bytes:
        raw = os.pread(self._descriptor, size, start)
        if len(raw) != size:
            raise PageError(f"{self.path}: it ends after {start + len(raw)} bytes")
        return raw

    def close(self) -> None:
        os.close(self._descriptor)


def _check(path: Path) -> int:
    """The number of slots of the page in this file. Raises OSError, or PageError for one that is none."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < page_size_bytes(1) or size % mmap.PAGESIZE:
            raise PageError(f"{path}: {size} bytes; a beat page has whole memory pages, at least {page_size_bytes(1)}")
        identity = file.read(LINE_BYTES)
    if problem := _problem(identity, size):
        raise PageError(f"{path}: {problem}")
    slots: int = struct.unpack_from("<Q", identity, Identity.SLOTS * WORD_BYTES)[0]
    return slots


def _problem(identity: bytes, size: int) -> str | None:
    words = memoryview(identity).cast("Q")
    magic, version, slots = (words[word] for word in (Identity.MAGIC, Identity.VERSION, Identity.SLOTS))
    if magic != MAGIC:
        return f"magic is {magic:#x}; a beat page has {MAGIC:#x}"
    if version != VERSION:
        return f"layout version is {version}; this program reads {VERSION}"
    if not 1 <= slots <= size // LINE_BYTES - FIRST_SLOT:
        return f"{slots} slots do not fit {size} bytes"
    return None


def _snapshot(words: memoryview, ended_before: int, slots: bytes) -> Snapshot:
    """`ended_before` was read before `words`, and of these the line of the exit after that of the launch, as pread
    copies them. (A process's own mapping may be copied in any order; nobody judges by that.)"""

    def word(line: int, index: int) -> int:
        value: int = words[line * LINE_WORDS + index]
        return value

    begun = word(Line.LAUNCH, Launch.BEGUN)
    # one that has ended meanwhile is not outstanding: the other words of its line may be the next one's already
    ended = max(ended_before, min(word(Line.EXIT, ExitWord.ENDED), begun))
    stage = word(Line.HOST, Host.STAGE)
    return Snapshot(
        pid=word(Line.IDENTITY, Identity.PID),
        generation=word(Line.IDENTITY, Identity.GENERATION),
        abort=word(Line.ABORT, 0),
        begun=begun,
        begun_at_ns=word(Line.LAUNCH, Launch.BEGUN_AT_NS),
        tokens=word(Line.LAUNCH, Launch.TOKENS),
        layer=word(Line.LAUNCH, Launch.LAYER),
        deadline_ns=word(Line.LAUNCH, Launch.DEADLINE_NS),
        ended=ended,
        exit=_exit_of(ended, word(Line.EXIT, ExitWord.EXIT)),
        items=(
            word(Line.EXIT, ExitWord.ROUTE),
            word(Line.EXIT, ExitWord.UP),
            word(Line.EXIT, ExitWord.DOWN),
            word(Line.EXIT, ExitWord.COMBINE),
        ),
        stage=Stage(stage) if stage in Stage._value2member_map_ else Stage.STARTING,
        host_beats=word(Line.HOST, Host.BEATS),
        answered=word(Line.HOST, Host.ANSWERED),
        baseline_ended=word(Line.HOST, Host.BASELINE_ENDED),
        baseline_begun=word(Line.HOST, Host.BASELINE_BEGUN),
        fused_batches=word(Line.HOST, Host.FUSED_BATCHES),
        baseline_batches=word(Line.HOST, Host.BASELINE_BATCHES),
        submitted=word(Line.GATEWAY, 0),
        slots=slots,
    )


def parse_slots(raw: bytes) -> list[Slot]:
    """The slots of `Snapshot.slots`. Words that no kernel writes read as NONE, so that noise cannot break a reader."""
    words = memoryview(raw).cast("Q")
    return [_slot(list(words[start : start + LINE_WORDS])) for start in range(0, len(words), LINE_WORDS)]


def _slot(words: list[int]) -> Slot:
    phase, wait = words[SlotWord.PHASE], words[SlotWord.WAIT] >> 32
    return Slot(
        launch=words[SlotWord.LAUNCH],
        ticket=words[SlotWord.TICKET] - 1 if words[SlotWord.TICKET] else None,
        phase=Phase(phase) if phase in Phase._value2member_map_ else Phase.NONE,
        expert=words[SlotWord.EXPERT] if words[SlotWord.EXPERT] != _ALL_EXPERTS_WORD else ALL_EXPERTS,
        row_tile=words[SlotWord.TILE] >> 32,
        column_tile=words[SlotWord.TILE] & 0xFFFFFFFF,
        wait=Wait(wait) if wait in Wait._value2member_map_ else Wait.NONE,
        target=words[SlotWord.WAIT] & 0xFFFFFFFF,
        seen=words[SlotWord.SEEN],
        items=words[SlotWord.ITEMS],
    )


def _exit_of(launch: int, word: int) -> Exit:
    code = word & 0xFF
    return Exit(code) if word >> 8 == launch and code in Exit._value2member_map_ else Exit.NONE
