"""Which requests go to the worker next, and what becomes of those that a worker does not answer. No clock, no I/O.

A request's life, with the areas that it holds:

    READING ----> QUEUED ----> SENT ----> DONE
    in, out       in, out      in, out    in, out      (all released by `release`)
                    ^            |
                    |  in        |  fence: the output area goes into quarantine, because the fenced process may still
                    +------------+  write to it, until that process is gone; the next sending takes a new one

One batch is with each device's worker at a time; meanwhile requests wait, in a queue a layer. Layers take turns, a
batch each: the one that was served longest ago goes next, so that a request at the head of its queue waits for one
batch of each other layer at most, however much those have queued. What is to be sent again goes before all turns. A
turn is a batch and not a number of tokens: a batch is one launch, and with few tokens its time is the reading of the
experts' weights.

A request whose deadline has passed is never sent. A generation that was fenced is never listened to again. Whoever made
a request releases it in the end, in whatever state it is. Times are the caller's monotonic clock, in seconds.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from fdmoe_ops.arena import Allocator, ArenaFull, round_up
from fdmoe_ops.gateway.admission import Limits, QueueFull, Waiting
from fdmoe_ops.gateway.pace import Pace
from fdmoe_ops.gateway.refusal import Reason
from fdmoe_watchdog.messages import MAX_NAMED_REQUESTS, Answer, Batch, Replay, Segment

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# a batch travels in one packet of at most 128 KiB; a segment takes at most 24 bytes of it, a request's id 130
MAX_SEGMENTS = 4096
# a request that workers end with, one after another, is more likely their end's cause than its victim
MAX_REPLAYS = 2


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


Deliver = Callable[[Outcome | None], None]


@dataclass(slots=True, eq=False)
class Request:
    """`size_bytes` at each offset, which take `area_bytes` of the arena; `output_offset` is None after a fence, and
    `fenced` is who had it. `deliver` takes the outcome, if one comes, or None when the deadline passed before the
    request was sent. `span`: its span, if it is traced."""

    layer: str
    tokens: int
    size_bytes: int
    area_bytes: int
    deadline: float
    upload: bool
    input_offset: int
    output_offset: int | None
    deliver: Deliver
    id: str = ""
    span: Span | None = None
    state: State = State.READING
    fences: int = 0
    fenced: Key | None = None
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
    requests: tuple[Request, ...]
    tokens: int
    replayed: int


class Flight(NamedTuple):
    """What is with a worker, and since when."""

    number: int
    requests: tuple[Request, ...]
    sent_at: float


_NO_FLIGHT = Flight(0, (), 0.0)


class InHand(NamedTuple):
    """How many requests a worker has, and the ids of the first of them."""

    total: int
    names: tuple[str, ...]


NOTHING = InHand(0, ())


class Batcher:
    """`limits` bound what waits, requests whose bodies are still being read included."""

    def __init__(self, allocator: Allocator, limits: Limits) -> None:
        self.allocator = allocator
        self.waiting = Waiting(limits)
        self._pace = Pace()
        self._active: dict[str, Key] = {}  # by device
        self._max_batch_tokens = 0
        self._queues: dict[str, OrderedDict[Request, None]] = {}  # no queue is empty
        self._served: dict[str, int] = {}  # the number of a layer's last batch
        self._given: dict[Key, int] = {}  # the number of a worker's last batch
        self._flights: dict[Key, Flight] = {}
        self._quarantine: dict[Key, list[int]] = {}  # a key from its fence to its end
        self._fenced: dict[Key, InHand] = {}  # until it has ended
        self._numbers = itertools.count(1)

    @property
    def queue_depth(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def idle(self) -> bool:
        """No request waits in a queue."""
        return not self._queues

    @property
    def active(self) -> tuple[Key, ...]:
        """The workers that batches go to, one a device."""
        return tuple(self._active.values())

    @property
    def queue_s(self) -> float:
        """How long what waits now will take the active workers, at the pace of the last batches; 0 before the first."""
        return self._pace.seconds_for(self.waiting.tokens) / max(len(self._active), 1)

    # ---- requests

    def reserve(
        self,
        layer: str,
        tokens: int,
        size_bytes: int,
        deliver: Deliver,
        *,
        deadline: float,
        upload: bool,
        request_id: str = "",
        span: Span | None = None,
    ) -> Request:
        """Areas and a place in the queue for a request whose input is about to be read; `upload`: from a client that
        has not sent all of it. Raises QueueFull."""
        area_bytes = 2 * round_up(size_bytes)
        self.waiting.check(layer, tokens, area_bytes, upload)
        spoken_for = sum(map(_needed_bytes, self._queues.values()))
        if spoken_for and self.allocator.free_bytes < spoken_for + area_bytes:
            raise QueueFull(Reason.ARENA, "the arena's last room is for requests that are to be sent again")
        try:
            input_offset = self.allocator.allocate(size_bytes)
            try:
                output_offset = self.allocator.allocate(size_bytes)
            except ArenaFull:
                self.allocator.release(input_offset)
                raise
        except ArenaFull as error:
            raise QueueFull(Reason.ARENA, str(error)) from error
        request = Request(
            layer, tokens, size_bytes, area_bytes, deadline, upload, input_offset, output_offset, deliver, request_id,
            span,
        )  # fmt: skip
        self._wait(request)
        if upload:
            self.waiting.upload_bytes += area_bytes
        return request

    def enqueue(self, request: Request) -> None:
        """The input is complete."""
        assert request.state is State.READING, f"enqueued in state {request.state.value}"
        self._uploaded(request)
        request.state = State.QUEUED
        self._queues.setdefault(request.layer, OrderedDict())[request] = None

    def release(self, request: Request) -> None:
        """Give the request's areas back: at once, or when the worker that has it is done with it."""
        match request.state:
            case State.READING:
                self._uploaded(request)
                self._leave(request)
            case State.QUEUED:
                self._leave(request)
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

    def activate(self, key: Key, device: str, max_batch_tokens: int) -> bool:
        """The device's batches go to this worker from now on; False if it was fenced in the meantime."""
        if key in self._quarantine:
            return False
        self._active[device], self._max_batch_tokens = key, max_batch_tokens
        return True

    def deactivate(self, device: str) -> None:
        """Nothing is sent there until another worker is active; what the last one has in hand it may still answer."""
        self._active.pop(device, None)

    def next_batch(self, now: float) -> Departure | None:
        """The batch to send now, if there is one. Requests that are too late are told so on the way.

        Of several devices the one that was given a batch longest ago is next among those that have none: who is slow is
        asked less often.
        """
        free = [key for key in self._active.values() if key not in self._flights]
        if not free:
            return None
        key = min(free, key=lambda key: self._given.get(key, 0))
        for layer in sorted(self._queues, key=self._turn):
            requests, replayed = self._take(layer, now)
            if requests:
                number = self._served[layer] = self._given[key] = next(self._numbers)
                self._flights[key] = Flight(number, requests, now)
                segments = tuple(Segment(r.input_offset, r.output_offset or 0, r.tokens) for r in requests)
                tokens = sum(request.tokens for request in requests)
                batch = Batch(key.generation, number, layer, segments, _names(requests), _replay(requests))
                return Departure(key, batch, requests, tokens, replayed)
        return None

    def answered(self, key: Key, answer: Answer, now: float) -> tuple[Request, ...] | None:
        """The requests that this answer is for, less those that nobody wants any more; None if it does not count."""
        number, requests, sent_at = self._flights.get(key, _NO_FLIGHT)
        if answer.generation != key.generation or answer.batch != number:
            return None
        del self._flights[key]
        self._pace.observe(sum(request.tokens for request in requests), now - sent_at)
        for request in requests:
            request.state = State.DONE
            if request.abandoned:
                self._free(request)
        return tuple(request for request in requests if not request.abandoned)

    def in_hand(self, key: Key) -> InHand:
        """What this worker is to answer; once it has been fenced, what it had then."""
        flight = self._flights.get(key)
        return self._fenced.get(key, NOTHING) if flight is None else _in_hand(flight.requests)

    def fence(self, key: Key) -> int:
        """No answer of `key` counts any more. Returns how many of its requests wait to be sent again."""
        self._active = {device: active for device, active in self._active.items() if active != key}
        quarantine = self._quarantine.setdefault(key, [])
        again = []
        requests = self._flights.pop(key, _NO_FLIGHT).requests
        if requests:
            self._fenced[key] = _in_hand(requests)
        for request in requests:
            assert request.output_offset is not None, "sent without an output area"
            quarantine.append(request.output_offset)
            request.output_offset = None
            request.fences, request.fenced = request.fences + 1, key
            if request.abandoned:
                self._free(request)
            elif request.fences > MAX_REPLAYS:
                request.state = State.DONE
                reason = f"{request.fences} workers ended or stalled while they had it"
                request.deliver(Outcome(key, Answer(key.generation, 0, "baseline", 0, reason)))
            else:
                again.append(request)
        for request in reversed(again):
            self._wait(request)
            request.state = State.QUEUED
            queue = self._queues.setdefault(request.layer, OrderedDict())
            queue[request] = None
            queue.move_to_end(request, last=False)
        return len(again)

    def gone(self, key: Key) -> None:
        """The process has been reaped: its output areas are free, and it counts as fenced if it was not."""
        self.fence(key)
        self._given.pop(key, None)
        self._fenced.pop(key, None)
        for offset in self._quarantine.pop(key):
            self.allocator.release(offset)

    # ---- parts of the above

    def _turn(self, layer: str) -> tuple[bool, int]:
        """What is to be sent again first; then the layer that was served longest ago."""
        return not next(iter(self._queues[layer])).replayed, self._served.get(layer, 0)

    def _take(self, layer: str, now: float) -> tuple[tuple[Request, ...], int]:
        """From the head of the queue, in order, as many as fit one batch, and how many of them go again.

        One that goes again needs a new output area; where the arena has none, it waits for the quarantine to end.
        """
        queue = self._queues[layer]
        taken: list[Request] = []
        tokens = replayed = 0
        while queue and len(taken) < MAX_SEGMENTS:
            request = next(iter(queue))
            if request.deadline <= now:
                del queue[request]
                self._leave(request)
                request.state = State.DONE
                request.deliver(None)
                continue
            if taken and tokens + request.tokens > self._max_batch_tokens:
                break
            if request.output_offset is None:
                try:
                    request.output_offset = self.allocator.allocate(request.size_bytes)
                except ArenaFull:
                    break
                replayed += 1
            del queue[request]
            self._leave(request)
            request.state = State.SENT
            taken.append(request)
            tokens += request.tokens
        if not queue:
            del self._queues[layer]
        return tuple(taken), replayed

    def _wait(self, request: Request) -> None:
        self.waiting.enter(request.layer, request.tokens, request.area_bytes)

    def _leave(self, request: Request) -> None:
        self.waiting.leave(request.layer, request.tokens, request.area_bytes)

    def _uploaded(self, request: Request) -> None:
        """Its body has come, or never will."""
        if request.upload:
            self.waiting.upload_bytes -= request.area_bytes

    def _free(self, request: Request) -> None:
        request.state = State.RELEASED
        self.allocator.release(request.input_offset)
        if request.output_offset is not None:
            self.allocator.release(request.output_offset)


def _names(requests: tuple[Request, ...]) -> tuple[str, ...]:
    return tuple([request.id for request in requests[:MAX_NAMED_REQUESTS]])


def _replay(requests: tuple[Request, ...]) -> Replay | None:
    """Of those at the head that one worker had, who was fenced; they go before all others."""
    fenced = requests[0].fenced
    if fenced is None:
        return None
    tokens = sum(request.tokens for request in itertools.takewhile(lambda request: request.fenced == fenced, requests))
    return Replay(*fenced, tokens)


def _in_hand(requests: tuple[Request, ...]) -> InHand:
    return InHand(len(requests), _names(requests))


def _needed_bytes(queue: OrderedDict[Request, None]) -> int:
    """For the output areas of those that are to be sent again; they stand before all others."""
    again = itertools.takewhile(lambda request: request.output_offset is None, queue)
    return sum(round_up(request.size_bytes) for request in again)
