"""Which path a batch takes, as a table of orders and sizes."""

from __future__ import annotations

from collections import Counter

import pytest

from fdmoe_ops.worker.choice import Choice, Taken
from fdmoe_watchdog.messages import Path

LAYER = "m/layers.0"
FUSED = Taken("fused", compare=False)
FUSED_COMPARED = Taken("fused", compare=True)
SHADOW = Taken("baseline", compare=True)
BASELINE = Taken("baseline", compare=False)


@pytest.mark.parametrize(
    ("path", "buckets", "tokens", "taken"),
    [
        ("baseline", None, 1, BASELINE),
        ("baseline", (1, 2), 1, BASELINE),
        ("shadow", (), 1, SHADOW),
        ("fused", None, 4096, FUSED),
        ("fused", (1, 16), 1, FUSED),
        ("fused", (1, 16), 9, FUSED),
        ("fused", (1, 16), 16, FUSED),
        ("fused", (1, 16), 17, SHADOW),
        ("fused", (1, 16), 2, SHADOW),
    ],
)
def test_the_order_and_the_size_decide(path: Path, buckets: tuple[int, ...] | None, tokens: int, taken: Taken) -> None:
    choice = Choice(ratio=0.0, interval_s=60.0)
    choice.order(path, buckets)
    assert choice.take(LAYER, tokens, now=0.0) == taken


def test_nothing_is_served_fused_before_an_order_nor_after_a_failure() -> None:
    choice = Choice(ratio=0.0, interval_s=60.0)
    assert choice.take(LAYER, 1, now=0.0) == BASELINE
    choice.order("fused", None)
    choice.stay_on_baseline()
    assert (choice.path, choice.take(LAYER, 1, now=0.0)) == ("baseline", BASELINE)


def test_one_in_so_many_is_compared() -> None:
    choice = Choice(ratio=0.25, interval_s=1e9)
    choice.order("fused", None)
    compared = [choice.take(LAYER, 1, now=0.0).compare for _ in range(9)]
    assert compared == [True, False, False, False, True, False, False, False, True]


def test_and_at_least_one_in_an_interval() -> None:
    choice = Choice(ratio=0.001, interval_s=60.0)
    choice.order("fused", None)
    times = [0, 1, 59, 60, 61, 119, 120, 500]
    compared = [now for now in times if choice.take(LAYER, 1, now=now).compare]
    assert compared == [0, 60, 120, 500]


def test_a_ratio_of_one_compares_all_and_of_zero_none() -> None:
    for ratio, compare in ((1.0, True), (0.0, False)):
        choice = Choice(ratio, interval_s=60.0)
        choice.order("fused", None)
        assert {choice.take(LAYER, 1, now=100.0 * turn).compare for turn in range(5)} == {compare}


@pytest.mark.parametrize("layers", [1, 24, 40, 48, 61])
def test_each_layer_that_a_model_calls_in_turn_is_compared(layers: int) -> None:
    """Also where their number and one in so many have a common factor: with one count for all, one in 1000 would
    compare one of 40 layers and never another."""
    choice = Choice(ratio=0.001, interval_s=1e9)
    choice.order("fused", None)
    compared = Counter(
        layer for _ in range(2000) for layer in range(layers) if choice.take(f"m/layers.{layer}", 16, now=0.0).compare
    )
    assert compared == dict.fromkeys(range(layers), 2)


def test_in_each_interval_the_layer_that_has_waited_longest_is_compared() -> None:
    choice = Choice(ratio=0.001, interval_s=60.0)
    choice.order("fused", None)

    def compared(layers: str, now: float) -> str:
        return "".join(layer for layer in layers if choice.take(layer, 1, now).compare)

    assert [compared("abcabc", now) for now in (0, 30, 60, 120, 180)] == ["a", "", "b", "c", "a"]
    # b would be the next one, and comes no more: in the second round nobody waits for it
    assert [compared("cacaca", now) for now in (240, 270, 300)] == ["c", "", "a"]
    assert [compared("acb", now) for now in (360, 420)] == ["c", "b"]
    # one that has just come into use has never been compared
    assert [compared("cdab", now) for now in (480, 540, 600)] == ["d", "a", "c"]
