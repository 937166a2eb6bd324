"""Queueing, fencing and replay as tables of histories: what is done, and what the batcher then says."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.arena import Allocator
from fdmoe_ops.gateway.admission import Limits, QueueFull, Waiting
from fdmoe_ops.gateway.batcher import MAX_SEGMENTS, Batcher, Key, Outcome, Request, State
from fdmoe_ops.gateway.called import MAX_CHARACTERS
from fdmoe_watchdog.channel import MAX_PACKET_BYTES
from fdmoe_watchdog.messages import MAX_NAMED_REQUESTS, Answer, Batch, Replay, Segment, encode

AREA = 256  # what one token of these tests takes of the arena
LIMITS = Limits(8, 8, 64 * AREA)


@dataclass
class Desk:
    """A batcher with named requests. Every step says what came of it, in words that tests compare."""

    batcher: Batcher
    requests: dict[str, Request] = field(default_factory=dict)
    sent: dict[Key, Batch] = field(default_factory=dict)  # the last batch that went to each
    now: float = 0.0
    late: list[str] = field(default_factory=list)  # those that were told so and have not been mentioned

    def do(self, step: str) -> str:
        verb, *words = step.split()
        said: str = getattr(self, f"_{verb}")(*words)
        return said

    def _ask(self, name: str, layer: str, tokens: str, deadline: str = "inf") -> str:
        self._upload(name, layer, tokens, deadline)
        return self._arrive(name)

    def _upload(self, name: str, layer: str, tokens: str, deadline: str = "inf") -> str:
        def deliver(outcome: Outcome | None) -> None:
            if outcome is None:
                self.late.append(name)

        self.requests[name] = self.batcher.reserve(
            layer, int(tokens), int(tokens) * AREA, deliver, deadline=float(deadline), upload=True
        )
        return "nothing"

    def _arrive(self, name: str) -> str:
        self.batcher.enqueue(self.requests[name])
        return self._send()

    def _at(self, now: str) -> str:
        """From now on it is this time."""
        self.now = float(now)
        return self._send()

    def _active(self, worker: str, generation: str, max_batch_tokens: str = "8") -> str:
        if not self.batcher.activate(Key(worker, int(generation)), "cpu", int(max_batch_tokens)):
            return "refused"
        return self._send()

    def _inactive(self) -> str:
        self.batcher.deactivate("cpu")
        return self._send()

    def _answer(self, worker: str, generation: str, batch: str = "") -> str:
        """Of the last batch that was sent there, unless it says which; then a free worker gets its next one."""
        key = Key(worker, int(generation))
        number = int(batch) if batch else self.sent[key].batch
        requests = self.batcher.answered(key, Answer(key.generation, number, "fused", 1), self.now)
        if requests is None:
            return "dropped"
        return f"answered {self._names(requests)}; {self._send()}"

    def _fence(self, worker: str, generation: str) -> str:
        return f"{self.batcher.fence(Key(worker, int(generation)))} again; {self._send()}"

    def _gone(self, worker: str, generation: str) -> str:
        self.batcher.gone(Key(worker, int(generation)))
        return self._send()

    def _release(self, name: str) -> str:
        self.batcher.release(self.requests[name])
        return self._send()

    def _free(self) -> str:
        return str(self.batcher.allocator.free_bytes // AREA)

    def _waiting(self) -> str:
        batcher, waiting = self.batcher, self.batcher.waiting
        return (
            f"{waiting.requests} requests, {waiting.tokens} tokens, {waiting.area_bytes // AREA} areas, "
            f"{waiting.upload_bytes // AREA} being read, depth {batcher.queue_depth}"
        )

    def _send(self) -> str:
        said = self._departure()
        late, self.late = self.late, []
        return f"{' '.join(late)} late; {said}" if late else said

    def _departure(self) -> str:
        departure = self.batcher.next_batch(self.now)
        if departure is None:
            return "nothing"
        self.sent[departure.key] = departure.batch
        offsets = [segment.input_offset for segment in departure.batch.segments]
        requests = [
            request for offset in offsets for request in self.requests.values() if request.input_offset == offset
        ]
        assert [segment.tokens for segment in departure.batch.segments] == [request.tokens for request in requests]
        key = departure.key
        again = f", {departure.replayed} again" if departure.replayed else ""
        return f"{self._names(requests)} to {key.worker}{key.generation}{again}"

    def _names(self, requests: object) -> str:
        assert isinstance(requests, list | tuple)
        return " ".join(name for request in requests for name, known in self.requests.items() if known is request)


def desk(*, areas: int = 100, max_requests: int = 100, max_tokens: int = 100, max_areas: int = 100) -> Desk:
    return Desk(Batcher(Allocator(areas * AREA), Limits(max_requests, max_tokens, max_areas * AREA)))


HISTORIES: dict[str, list[tuple[str, str]]] = {
    "without a worker requests wait; then they go in one batch": [
        ("ask x m 1", "nothing"),
        ("ask y m 2", "nothing"),
        ("waiting", "2 requests, 3 tokens, 6 areas, 0 being read, depth 2"),
        ("active a 1", "x y to a1"),
        ("waiting", "0 requests, 0 tokens, 0 areas, 0 being read, depth 0"),
        ("answer a 1", "answered x y; nothing"),
    ],
    "one batch at a time, and what waits meanwhile goes together": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("ask y m 2", "nothing"),
        ("ask z m 3", "nothing"),
        ("answer a 1", "answered x; y z to a1"),
        ("answer a 1", "answered y z; nothing"),
    ],
    "layers take turns, a batch each, and a new one goes before those that were served": [
        ("ask u m 8", "nothing"),
        ("ask v m 8", "nothing"),
        ("ask w m 8", "nothing"),
        ("ask x n 8", "nothing"),
        ("ask y n 1", "nothing"),
        ("active a 1", "u to a1"),
        ("ask z o 1", "nothing"),
        ("answer a 1", "answered u; x to a1"),
        ("answer a 1", "answered x; z to a1"),
        ("answer a 1", "answered z; v to a1"),
        ("answer a 1", "answered v; y to a1"),
        ("answer a 1", "answered y; w to a1"),
    ],
    "what is to be sent again goes before a layer whose turn it is": [
        ("active a 1", "nothing"),
        ("ask x m 8", "x to a1"),
        ("ask y m 1", "nothing"),
        ("ask z n 1", "nothing"),
        ("fence a 1", "1 again; nothing"),
        ("active b 1", "x to b1, 1 again"),
        ("answer b 1", "answered x; z to b1"),
        ("answer b 1", "answered z; y to b1"),
    ],
    "a request whose deadline has passed is told so and not sent; the others move up": [
        ("ask x m 6 5", "nothing"),
        ("ask y m 6 9", "nothing"),
        ("ask z m 2", "nothing"),
        ("at 5", "nothing"),  # without a worker nobody looks: that is the waiting room's part
        ("active a 1", "x late; y z to a1"),
        ("release x", "nothing"),
        ("waiting", "0 requests, 0 tokens, 0 areas, 0 being read, depth 0"),
        ("free", "84"),
    ],
    "a layer with nothing but late requests loses its turn to the next": [
        ("ask x m 1 1", "nothing"),
        ("ask y n 1", "nothing"),
        ("at 2", "nothing"),
        ("active a 1", "x late; y to a1"),
    ],
    "a deadline that passes with a worker does not end the batch": [
        ("active a 1", "nothing"),
        ("ask x m 1 5", "x to a1"),
        ("at 6", "nothing"),
        ("answer a 1", "answered x; nothing"),
    ],
    "a request whose deadline passed with a fenced worker is not sent again": [
        ("active a 1", "nothing"),
        ("ask x m 1 5", "x to a1"),
        ("fence a 1", "1 again; nothing"),
        ("at 6", "nothing"),
        ("active b 1", "x late; nothing"),
        ("release x", "nothing"),
        ("gone a 1", "nothing"),
        ("free", "100"),
    ],
    "a body that is being read counts until it has come, or never will": [
        ("upload x m 3", "nothing"),
        ("upload y m 2", "nothing"),
        ("waiting", "2 requests, 5 tokens, 10 areas, 10 being read, depth 0"),
        ("arrive x", "nothing"),
        ("waiting", "2 requests, 5 tokens, 10 areas, 4 being read, depth 1"),
        ("release y", "nothing"),
        ("waiting", "1 requests, 3 tokens, 6 areas, 0 being read, depth 1"),
    ],
    "a batch takes requests in order and stops at the first that does not fit": [
        ("ask x m 5", "nothing"),
        ("ask y m 4", "nothing"),
        ("ask z m 1", "nothing"),
        ("active a 1", "x to a1"),
        ("answer a 1", "answered x; y z to a1"),
    ],
    "a fenced batch goes again, first, to the next worker, into new areas": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("ask y m 1", "nothing"),
        ("ask z n 1", "nothing"),
        ("fence a 1", "1 again; nothing"),
        ("answer a 1", "dropped"),
        ("active b 1", "x y to b1, 1 again"),
        ("free", "93"),  # three inputs, three outputs, one in quarantine
        ("answer a 1", "dropped"),
        ("answer b 1", "answered x y; z to b1"),
        ("gone a 1", "nothing"),
        ("free", "94"),
    ],
    "two workers of one generation number are not mixed up": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("fence a 1", "1 again; nothing"),
        ("active b 1", "x to b1, 1 again"),
        ("answer a 1 2", "dropped"),
        ("answer b 1 1", "dropped"),
        ("answer b 1 2", "answered x; nothing"),
    ],
    "fenced twice, sent three times": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("fence a 1", "1 again; nothing"),
        ("active b 1", "x to b1, 1 again"),
        ("gone b 1", "nothing"),
        ("active a 2", "x to a2, 1 again"),
        ("answer b 1", "dropped"),
        ("answer a 2", "answered x; nothing"),
        ("release x", "nothing"),
        ("free", "99"),
        ("gone a 1", "nothing"),
        ("free", "100"),
    ],
    "gone without a fence means both": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("gone a 1", "nothing"),
        ("free", "99"),
        ("answer a 1", "dropped"),
        ("active b 1", "x to b1, 1 again"),
    ],
    "fencing the standby changes nothing": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("fence b 1", "0 again; nothing"),
        ("gone b 1", "nothing"),
        ("answer a 1", "answered x; nothing"),
    ],
    "a worker that was fenced before it was ready is never active": [
        ("ask x m 1", "nothing"),
        ("fence a 1", "0 again; nothing"),
        ("active a 1", "refused"),
        ("active a 2", "x to a2"),
    ],
    "routed away without a fence: the old one may still answer": [
        ("active a 1", "nothing"),
        ("ask x m 1", "x to a1"),
        ("inactive", "nothing"),
        ("ask y m 1", "nothing"),
        ("active b 1", "y to b1"),
        ("answer a 1", "answered x; nothing"),
    ],
    "a client that goes while its request waits frees all of it": [
        ("ask x m 3", "nothing"),
        ("ask y m 1", "nothing"),
        ("free", "92"),
        ("release x", "nothing"),
        ("free", "98"),
        ("waiting", "1 requests, 1 tokens, 2 areas, 0 being read, depth 1"),
        ("active a 1", "y to a1"),
    ],
    "a client that goes while a worker has its request: freed when the batch is done": [
        ("active a 1", "nothing"),
        ("ask x m 3", "x to a1"),
        ("release x", "nothing"),
        ("free", "94"),
        ("answer a 1", "answered ; nothing"),
        ("free", "100"),
    ],
    "a client that went is not replayed, and its output waits for the end of the process": [
        ("active a 1", "nothing"),
        ("ask x m 3", "x to a1"),
        ("release x", "nothing"),
        ("fence a 1", "0 again; nothing"),
        ("free", "97"),
        ("gone a 1", "nothing"),
        ("free", "100"),
    ],
    "where the arena has no second output area, a replay waits for the first to be free": [
        ("active a 1", "nothing"),
        ("ask x m 30", "x to a1"),
        ("ask y n 15", "nothing"),
        ("ask z n 4", "nothing"),
        ("fence a 1", "1 again; nothing"),
        ("free", "2"),
        ("active b 1 64", "y z to b1"),
        ("answer b 1", "answered y z; nothing"),
        ("release y", "x to b1, 1 again"),
    ],
    "and no longer than until its process is gone": [
        ("active a 1", "nothing"),
        ("ask x m 40", "x to a1"),
        ("fence a 1", "1 again; nothing"),
        ("active b 1 64", "nothing"),
        ("gone a 1", "x to b1, 1 again"),
    ],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES.keys())
def test_history(history: list[tuple[str, str]]) -> None:
    here = desk(areas=100)
    for step, said in history:
        assert (step, here.do(step)) == (step, said)


def test_a_replay_has_other_output_areas_and_the_same_input() -> None:
    here = desk()
    here.do("active a 1")
    here.do("ask x m 2")
    here.do("fence a 1")
    here.do("active b 1")
    before, after = (here.sent[key].segments[0] for key in (Key("a", 1), Key("b", 1)))
    assert before.input_offset == after.input_offset
    assert abs(before.output_offset - after.output_offset) >= 2 * AREA
    assert here.sent[Key("b", 1)].batch == here.sent[Key("a", 1)].batch + 1
    assert here.requests["x"].replayed


def test_a_batch_says_which_of_its_rows_another_worker_had() -> None:
    here = desk()
    here.do("active a 1")
    here.do("ask x m 2")
    here.do("ask y m 1")
    here.do("fence a 1")
    here.do("active b 1")
    a, b, c = Key("a", 1), Key("b", 1), Key("c", 1)
    assert here.sent[a].replay is None
    assert (len(here.sent[b].segments), here.sent[b].replay) == (2, Replay("a", 1, 2))
    here.do("fence b 1")
    here.do("active c 1")
    # the last that had them: what it had is all of the batch
    assert here.sent[c].replay == Replay("b", 1, 3)


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"max_requests": 2}, "2 requests wait; at most 2 may"),
        ({"max_tokens": 9}, "6 tokens wait; with 4 more than 9 would"),
        ({"max_areas": 18}, "3072 bytes of tensors wait; with 2048 more than 4608 would"),
        ({"areas": 19}, "1024 bytes are wanted; the largest free area of the arena has 768"),
    ],
)
def test_a_full_queue_says_what_is_full(limits: dict[str, int], text: str) -> None:
    here = desk(**limits)
    for name in "xy":
        here.do(f"ask {name} m 3")
    free = here.batcher.allocator.free_bytes
    with pytest.raises(QueueFull) as caught:
        here.do("ask z m 4")
    assert str(caught.value) == text
    assert here.batcher.allocator.free_bytes == free
    here.do("release x")
    assert here.do("ask z m 4") == "nothing"


def test_what_a_worker_has_does_not_count_as_waiting() -> None:
    here = desk(max_requests=1)
    here.do("active a 1")
    assert here.do("ask x m 3") == "x to a1"
    assert here.do("ask y m 3") == "nothing"
    assert here.do("waiting") == "1 requests, 3 tokens, 6 areas, 0 being read, depth 1"


def test_an_answer_of_another_generation_on_this_connection_is_dropped() -> None:
    here = desk()
    here.do("active a 2")
    here.do("ask x m 1")
    assert here.batcher.answered(Key("a", 2), Answer(1, 1, "fused", 1), 0.0) is None
    assert here.do("answer a 2") == "answered x; nothing"


def test_how_long_the_queue_takes_follows_from_the_batches_that_were_answered() -> None:
    here = desk()
    here.do("active a 1 4")
    here.do("ask x m 4")
    here.do("ask y m 4")
    here.do("ask z m 2")
    assert here.batcher.queue_s == 0.0, "nothing was answered yet"
    here.do("at 2")
    assert here.do("answer a 1") == "answered x; y to a1"
    assert here.batcher.queue_s == 1.0, "four tokens took 2 s, and two wait"
    here.do("at 8")
    here.do("fence a 1")
    assert here.batcher.queue_s == 3.0, "what a fenced worker had waits again, and its time does not count"
    here.batcher.activate(Key("a0", 1), "cuda:0", 4)
    here.batcher.activate(Key("a1", 1), "cuda:1", 4)
    assert here.batcher.queue_s == 1.5, "two share it"


def test_released_twice_is_a_mistake_of_ours() -> None:
    here = desk()
    here.do("ask x m 1")
    here.do("release x")
    with pytest.raises(AssertionError, match="released twice"):
        here.do("release x")


def test_the_largest_batch_fits_a_packet() -> None:
    far = 1 << 40  # a terabyte: offsets of nine bytes
    segments = tuple(Segment(far, far, 1 << 17) for _ in range(MAX_SEGMENTS))
    requests = ("x" * MAX_CHARACTERS,) * MAX_NAMED_REQUESTS
    batch = Batch(1 << 32, 1 << 40, "x" * 1000, segments, requests, Replay("x" * 1000, 1 << 32, 1 << 17))
    assert len(encode(batch)) < MAX_PACKET_BYTES


steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["ask", "upload"]), st.sampled_from("mn"), st.integers(1, 6), st.integers(1, 40)),
        st.tuples(st.sampled_from(["arrive", "release", "answer"]), st.integers(0, 50)),
        st.tuples(st.sampled_from(["fence", "gone", "late"]), st.integers(0, 9)),
        st.tuples(st.just("route")),
    ),
    max_size=60,
)


@given(steps)
def test_any_history_answers_once_shares_no_area_and_loses_none(history: list[tuple[object, ...]]) -> None:
    allocator = Allocator(60 * AREA)
    limits = Limits(20, 60, 40 * AREA)
    batcher = Batcher(allocator, limits)
    alive: list[Request] = []
    answered: list[Request] = []
    told: dict[int, int] = {}  # who was told that it is too late: when it came, and its deadline; or 0, given up
    with_worker: dict[Key, Batch] = {}
    keys: list[Key] = []
    fenced: set[Key] = set()
    writable: dict[Key, set[int]] = {}  # output areas that a process which is not gone may write to
    came: dict[Request, int] = {}
    for now, (verb, *arguments) in enumerate(history):
        match verb, arguments:
            case (("ask" | "upload"), [str(layer), int(tokens), int(patience)]):

                def deliver(outcome: Outcome | None, came: int = now, deadline: int = now + patience) -> None:
                    told[came] = deadline if outcome is None else 0

                try:
                    request = batcher.reserve(
                        layer, tokens, tokens * AREA, deliver, deadline=float(now + patience), upload=verb == "upload"
                    )
                except QueueFull:
                    continue
                alive.append(request)
                came[request] = now
                if verb == "ask":
                    batcher.enqueue(request)
            case "arrive", [int(index)] if reading := [r for r in alive if r.state is State.READING]:
                batcher.enqueue(reading[index % len(reading)])
            case "release", [int(index)] if alive:
                batcher.release(alive.pop(index % len(alive)))
            case "answer", [int(index)] if with_worker:
                key = list(with_worker)[index % len(with_worker)]
                answer = Answer(key.generation, with_worker.pop(key).batch, "fused", 1)
                requests = batcher.answered(key, answer, float(now))
                assert (requests is None) == (key in fenced)
                for request in requests or ():
                    assert request in alive
                    assert request not in answered
                    answered.append(request)
                if key not in fenced:
                    writable[key].clear()
            case (("fence" | "gone"), [int(index)]) if keys:
                key = keys[index % len(keys)]
                fenced.add(key)
                if verb == "fence":
                    batcher.fence(key)
                else:
                    keys.remove(key)
                    batcher.gone(key)
                    writable.pop(key)
                    with_worker.pop(key, None)
            case "route", []:
                key = Key("a", now + 1)
                keys.append(key)
                writable[key] = set()
                assert batcher.activate(key, "cpu", 8)
        departure = batcher.next_batch(float(now))
        if departure is not None:
            sent = {segment.input_offset for segment in departure.batch.segments}
            assert all(request.deadline > now for request in alive if request.input_offset in sent)
            assert departure.key not in fenced
            outputs = [segment.output_offset for segment in departure.batch.segments]
            assert not set(outputs) & set().union(*writable.values())
            with_worker[departure.key] = departure.batch
            writable[departure.key].update(outputs)
        held = [offset for request in alive for offset in (request.input_offset, request.output_offset)]
        held = [offset for offset in held if offset is not None]
        assert len(held) == len(set(held))
        queued = [request for request in alive if request.state is State.QUEUED]
        being_read = [request for request in alive if request.state is State.READING]
        assert batcher.queue_depth == len(queued)
        waiting = batcher.waiting
        assert waiting.requests == len(queued) + len(being_read) <= limits.requests + 2
        assert waiting.tokens == sum(request.tokens for request in queued + being_read)
        assert waiting.area_bytes == sum(request.area_bytes for request in queued + being_read)
        assert waiting.upload_bytes == sum(request.area_bytes for request in being_read if request.upload)
        done = [came[request] for request in alive if request.state is State.DONE and request not in answered]
        assert set(done) <= set(told)
        assert all(deadline <= now for deadline in told.values())
    for request in alive:
        batcher.release(request)
    for key in keys:
        batcher.gone(key)
    assert allocator.free_bytes == allocator.size_bytes
    assert batcher.waiting == Waiting(limits)


def test_a_request_that_three_workers_end_with_is_answered_and_not_sent_again() -> None:
    batcher = Batcher(Allocator(64 * AREA), LIMITS)
    told: list[Outcome | None] = []
    request = batcher.reserve("l", 1, AREA, told.append, deadline=1.0, upload=False)
    batcher.enqueue(request)
    for generation in (1, 2, 3):
        key = Key("a", generation)
        assert batcher.activate(key, "cpu", 8)
        assert batcher.next_batch(0.0) is not None
        assert batcher.fence(key) == (1 if generation < 3 else 0)
    (outcome,) = told
    assert outcome is not None
    assert outcome.answer.error == "3 workers ended or stalled while they had it"
    batcher.release(request)
    for generation in (1, 2, 3):
        batcher.gone(Key("a", generation))
    assert batcher.allocator.free_bytes == 64 * AREA


def test_new_requests_leave_the_arena_to_those_that_go_again() -> None:
    batcher = Batcher(Allocator(3 * AREA), LIMITS)
    first = batcher.reserve("l", 1, AREA, lambda _: None, deadline=1.0, upload=False)
    batcher.enqueue(first)
    batcher.activate(Key("a", 1), "cpu", 8)
    assert batcher.next_batch(0.0) is not None
    batcher.fence(Key("a", 1))
    with pytest.raises(QueueFull, match="the arena's last room is for requests that are to be sent again"):
        batcher.reserve("other", 1, AREA, lambda _: None, deadline=1.0, upload=False)
    batcher.activate(Key("b", 1), "cpu", 8)
    assert batcher.next_batch(0.0) is not None, "the third area was kept for it"


def _three_requests(batcher: Batcher) -> None:
    for _ in range(3):
        batcher.enqueue(batcher.reserve("l", 2, AREA, lambda _: None, deadline=9.0, upload=False))


def test_each_device_has_a_batch_and_the_one_that_waited_longest_is_next() -> None:
    batcher = Batcher(Allocator(64 * AREA), LIMITS)
    one, two = Key("a0", 1), Key("a1", 1)
    _three_requests(batcher)
    batcher.activate(one, "cuda:0", 2)
    batcher.activate(two, "cuda:1", 2)
    assert batcher.active == (one, two)
    sent = [batcher.next_batch(0.0), batcher.next_batch(0.0)]
    assert [departure and departure.key for departure in sent] == [one, two]
    assert batcher.next_batch(0.0) is None, "both have one in hand"
    assert sent[1] is not None
    batcher.answered(two, Answer(1, sent[1].batch.batch, "fused", 1), 0.1)
    third = batcher.next_batch(0.1)
    assert third is not None
    assert third.key == two, "the other is still at its first"


def test_what_a_device_that_is_out_had_goes_to_the_other() -> None:
    batcher = Batcher(Allocator(64 * AREA), LIMITS)
    one, two = Key("a0", 1), Key("a1", 1)
    _three_requests(batcher)
    batcher.activate(one, "cuda:0", 2)
    batcher.activate(two, "cuda:1", 2)
    lost, kept = batcher.next_batch(0.0), batcher.next_batch(0.0)
    assert lost is not None
    assert kept is not None
    assert batcher.fence(one) == 1
    assert batcher.active == (two,)
    assert batcher.next_batch(0.0) is None
    batcher.answered(two, Answer(1, kept.batch.batch, "fused", 1), 0.1)
    again = batcher.next_batch(0.1)
    assert again is not None
    assert (again.key, again.replayed) == (two, 1), "before what has waited, too"
    assert again.batch.segments[0].input_offset == lost.batch.segments[0].input_offset
