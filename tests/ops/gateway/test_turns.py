"""Layers take turns: what one has queued delays another by no more than a batch."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.arena import Allocator
from fdmoe_ops.gateway.admission import Limits
from fdmoe_ops.gateway.batcher import Batcher, Departure, Key, Request
from fdmoe_watchdog.messages import Answer

AREA = 256
BATCH_TOKENS = 8


class Door:
    """A batcher with room for all, one worker at a time, and a note of who asked and who was answered."""

    def __init__(self) -> None:
        self.batcher = Batcher(Allocator(1 << 24), Limits(1 << 20, 1 << 20, 1 << 24))
        self.asked: list[Request] = []
        self.answered: list[Request] = []
        self.departure: Departure | None = None  # what is with the worker
        self.generation = 0
        self.start()

    def start(self) -> None:
        self.generation += 1
        self.batcher.activate(self.key, "cpu", BATCH_TOKENS)

    @property
    def key(self) -> Key:
        return Key("a", self.generation)

    def ask(self, layer: str, tokens: int) -> None:
        request = self.batcher.reserve(
            layer, tokens, tokens * AREA, lambda _: None, deadline=float("inf"), upload=False
        )
        self.batcher.enqueue(request)
        self.asked.append(request)

    def send(self) -> Departure | None:
        """The next batch, if the worker is free and something waits."""
        departure = self.batcher.next_batch(0.0)
        if departure is not None:
            self.departure = departure
        return departure

    def answer(self) -> None:
        assert self.departure is not None
        requests = self.batcher.answered(self.key, Answer(self.generation, self.departure.batch.batch, "fused", 1), 0.0)
        assert requests is not None
        for request in requests:
            self.answered.append(request)
            self.batcher.release(request)
        self.departure = None

    def replace(self) -> None:
        """The worker dies, and there is another."""
        self.batcher.gone(self.key)
        self.departure = None
        self.start()


def test_ten_thousand_requests_of_one_layer_delay_another_by_the_batch_that_runs() -> None:
    door = Door()
    for _ in range(10_000):
        door.ask("crowd", 1)
    door.send()
    door.ask("single", 1)
    door.answer()
    departure = door.send()
    assert departure is not None
    assert (departure.batch.layer, departure.tokens) == ("single", 1)


def test_a_layer_that_keeps_asking_gets_every_second_batch_beside_ten_thousand() -> None:
    door = Door()
    for _ in range(10_000):
        door.ask("crowd", 1)
    layers = []
    for _ in range(10):
        door.ask("single", 1)
        departure = door.send()
        assert departure is not None
        layers.append(departure.batch.layer)
        door.answer()
    assert layers == ["crowd", "single"] * 5


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from("klmn"), st.integers(1, BATCH_TOKENS)),
        st.tuples(st.sampled_from(["answer", "answer", "replace"])),
    ),
    max_size=80,
)


@given(steps)
def test_no_layer_waits_for_more_than_one_batch_of_each_other(history: list[tuple[object, ...]]) -> None:
    door = Door()
    passed: dict[str, Counter[str]] = {}  # since a layer waits: the batches of others that went before it
    for verb, *arguments in history:
        match verb, arguments:
            case "ask", [str(layer), int(tokens)]:
                door.ask(layer, tokens)
                passed.setdefault(layer, Counter())
            case "answer", [] if door.departure:
                door.answer()
            case "replace", []:
                door.replace()
                for request in door.asked:
                    if request.replayed and request.state.value == "queued":
                        passed.setdefault(request.layer, Counter())
        departure = door.send()
        if departure is None:
            continue
        served = departure.batch.layer
        passed.pop(served)
        for others in passed.values():
            others[served] += departure.replayed == 0
            assert others[served] <= 1
        if any(request.state.value == "queued" for request in door.asked if request.layer == served):
            passed[served] = Counter()
    while door.departure or door.send():
        door.answer()
    ended = [request for request in door.asked if request.fences > 2]  # answered by the batcher itself
    for request in ended:
        door.batcher.release(request)
    for layer in "klmn":
        asked = [request for request in door.asked if request.layer == layer and request not in ended]
        assert [request for request in door.answered if request.layer == layer] == asked
    assert door.batcher.allocator.free_bytes == door.batcher.allocator.size_bytes
