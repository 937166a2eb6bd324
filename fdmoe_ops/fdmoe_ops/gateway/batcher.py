"""Which requests go to the worker next, and what becomes of those that a worker does not answer. No clock, no I/O.

A request's life, with the areas that it holds:

    READING ----> QUEUED ----> SENT ----> DONE
    in, out       in, out      in, out    in, out      (all released by `release`)
                    ^            |
                    |  in        |  fence: the output area goes into quarantine, because the fenced process may still
                    +------------+  write to it, until that process is gone; the next sending takes a new one

One batch is with a worker at a time; meanwhile requests wait, in a queue a layer. A generation that was fenced is never
listened to again. Whoever made a request releases it in the end, in whatever state it is.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from fdmoe_ops.arena import Allocator, ArenaFull, round_up
from fdmoe_watchdog.messages import Answer, Batch, Segment

# a batch travels in one packet of at most 128 KiB; a segment takes at most 24 bytes of it
MAX_SEGMENTS = 4096
# a request that workers end with, one after another, is more likely their end's cause than its victim
MAX_REPLAYS = 2


class QueueFull(RuntimeError):
    """As many requests or tokens wait as may, or the arena has no room; the message says which."""


class State(Enum):
    READING = "reading"
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"
    RELEASED = "released"


class Key(NamedTuple):
    """One process that was started as this worker. A tuple: it is hashed six times a request."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a worker said about a request's batch."""

    key: Key
    answer: Answer


@dataclass(slots=True, eq=False)
class Request:
    """`size_bytes` at each offset; `output_offset` is None after a fence. `deliver` takes the outcome, if one comes."""

    layer: str
    tokens: int
    size_bytes: int
    input_offset: int
    output_offset: int | None
    deliver: Callable[[Outcome], None]
    state: State = State.READING
    queued_at: float = 0.0
    fences: int = 0
    abandoned: bool = False

    @property
    def replayed(self) -> bool:
        """It was with a worker that was fenced."""
        return self.fences > 0


@dataclass(frozen=True, slots=True)
class Departure:
    """A batch to be sent to `key` now; `replayed` of its requests had been sent before."""

    key: Key
    batch: Batch
    tokens: int
    replayed: int


@dataclass(slots=True)
class Batcher:
    """`max_requests` and `max_tokens` bound what waits, requests whose bodies are still being read included."""

    allocator: Allocator
    max_requests: int
    max_tokens: int
    waiting_requests: int = 0
    waiting_tokens: int = 0
    _active: Key | None = None
    _max_batch_tokens: int = 0
    _queues: dict[str, OrderedDict[Request, None]] = field(default_factory=dict)  # no queue is empty
    _flights: dict[Key, tuple[int, tuple[Request, ...]]] = field(default_factory=dict)
    _quarantine: dict[Key, list[int]] = field(default_factory=dict)  # a key from its fence to its end
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def queue_depth(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def idle(self) -> bool:
        """No request waits in a queue."""
        return not self._queues

    @property
    def active(self) -> Key | None:
        return self._active

    # ---- requests

    def reserve(self, layer: str, tokens: int, size_bytes: int, deliver: Callable[[Outcome], None]) -> Request:
        """Areas and a place in the queue for a request whose input is about to be read. Raises QueueFull."""
        if self.waiting_requests >= self.max_requests:
            raise QueueFull(f"{self.waiting_requests} requests wait; at most {self.max_requests} may")
        if self.waiting_tokens + tokens > self.max_tokens:
            raise QueueFull(f"{self.waiting_tokens} tokens wait; with {tokens} more than {self.max_tokens} would")
        spoken_for = sum(map(_needed_bytes, self._queues.values()))
        if spoken_for and self.allocator.free_bytes < spoken_for + 2 * round_up(size_bytes):
            raise QueueFull("the arena's last room is for requests that are to be sent again")
        try:
            input_offset = self.allocator.allocate(size_bytes)
            try:
                output_offset = self.allocator.allocate(size_bytes)
            except ArenaFull:
                self.allocator.release(input_offset)
                raise
        except ArenaFull as error:
            raise QueueFull(str(error)) from error
        self._wait(tokens)
        return Request(layer, tokens, size_bytes, input_offset, output_offset, deliver)

    def enqueue(self, request: Request, now: float) -> None:
        """The input is complete. `now` is the caller's monotonic clock, in seconds."""
        assert request.state is State.READING, f"enqueued in state {request.state.value}"
        request.state = State.QUEUED
        request.queued_at = now
        self._queues.setdefault(request.layer, OrderedDict())[request] = None

    def release(self, request: Request) -> None:
        """Give the request's areas back: at once, or when the worker that has it is done with it."""
        match request.state:
            case State.READING:
                self._leave(request.tokens)
            case State.QUEUED:
                self._leave(request.tokens)
                queue = self._queues[request.layer]
                del queue[request]
                if not queue:
                    del self._queues[request.layer]
            case State.SENT:
                request.abandoned = True
                return
            case State.DONE:
                pass
            case State.RELEASED:
                raise AssertionError("released twice")
        self._free(request)

    # ---- workers

    def activate(self, key: Key, max_batch_tokens: int) -> bool:
        """Batches go to this worker from now on; False if it was fenced in the meantime."""
        if key in self._quarantine:
            return False
        self._active, self._max_batch_tokens = key, max_batch_tokens
        return True

    def deactivate(self) -> None:
        """Nothing is sent until another worker is active; what the last one has in hand it may still answer."""
        self._active = None

    def next_batch(self) -> Departure | None:
        """The batch to send now, if there is one: of the layer whose first request has waited longest."""
        key = self._active
        if key is None or key in self._flights:
            return None
        for layer in sorted(self._queues, key=lambda name: next(iter(self._queues[name])).queued_at):
            requests, replayed = self._take(layer)
            if requests:
                number = next(self._numbers)
                self._flights[key] = (number, requests)
                segments = tuple(Segment(r.input_offset, r.output_offset or 0, r.tokens) for r in requests)
                tokens = sum(request.tokens for request in requests)
                return Departure(key, Batch(key.generation, number, layer, segments), tokens, replayed)
        return None

    def answered(self, key: Key, answer: Answer) -> tuple[Request, ...] | None:
        """The requests that this answer is for, less those that nobody wants any more; None if it does not count."""
        number, requests = self._flights.get(key, (0, ()))
        if answer.generation != key.generation or answer.batch != number:
            return None
        del self._flights[key]
        for request in requests:
            request.state = State.DONE
            if request.abandoned:
                self._free(request)
        return tuple(request for request in requests if not request.abandoned)

    def fence(self, key: Key) -> int:
        """No answer of `key` counts any more. Returns how many of its requests wait to be sent again."""
        if key == self._active:
            self._active = None
        quarantine = self._quarantine.setdefault(key, [])
        _, requests = self._flights.pop(key, (0, ()))
        again = []
        for request in requests:
            assert request.output_offset is not None, "sent without an output area"
            quarantine.append(request.output_offset)
            request.output_offset = None
            request.fences += 1
            if request.abandoned:
                self._free(request)
            elif request.fences > MAX_REPLAYS:
                request.state = State.DONE
                reason = f"{request.fences} workers ended or stalled while they had it"
                request.deliver(Outcome(key, Answer(key.generation, 0, "baseline", 0, reason)))
            else:
                again.append(request)
        for request in reversed(again):
            self._wait(request.tokens)
            request.state = State.QUEUED
            queue = self._queues.setdefault(request.layer, OrderedDict())
            queue[request] = None
            queue.move_to_end(request, last=False)
        return len(again)

    def gone(self, key: Key) -> None:
        """The process has been reaped: its output areas are free, and it counts as fenced if it was not."""
        self.fence(key)
        for offset in self._quarantine.pop(key):
            self.allocator.release(offset)

    # ---- parts of the above

    def _take(self, layer: str) -> tuple[tuple[Request, ...], int]:
        """From the head of the queue, in order, as many as fit one batch, and how many of them go again.

        One that goes again needs a new output area; where the arena has none, it waits for the quarantine to end.
        """
        queue = self._queues[layer]
        taken: list[Request] = []
        tokens = replayed = 0
        while queue and len(taken) < MAX_SEGMENTS:
            request = next(iter(queue))
            if taken and tokens + request.tokens > self._max_batch_tokens:
                break
            if request.output_offset is None:
                try:
                    request.output_offset = self.allocator.allocate(request.size_bytes)
                except ArenaFull:
                    break
                replayed += 1
            del queue[request]
            self._leave(request.tokens)
            request.state = State.SENT
            taken.append(request)
            tokens += request.tokens
        if not queue:
            del self._queues[layer]
        return tuple(taken), replayed

    def _wait(self, tokens: int) -> None:
        self.waiting_requests += 1
        self.waiting_tokens += tokens

    def _leave(self, tokens: int) -> None:
        self.waiting_requests -= 1
        self.waiting_tokens -= tokens

    def _free(self, request: Request) -> None:
        request.state = State.RELEASED
        self.allocator.release(request.input_offset)
        if request.output_offset is not None:
            self.allocator.release(request.output_offset)


def _needed_bytes(queue: OrderedDict[Request, None]) -> int:
    """For the output areas of those that are to be sent again; they stand before all others."""
    again = itertools.takewhile(lambda request: request.output_offset is None, queue)
    return sum(round_up(request.size_bytes) for request in again)
