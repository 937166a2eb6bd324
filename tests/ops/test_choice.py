"""Which path a batch takes, as a table of orders and sizes."""

from __future__ import annotations

import pytest

from fdmoe_ops.worker.choice import Choice, Taken
from fdmoe_watchdog.messages import Path

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
    assert choice.take(tokens, now=0.0) == taken


def test_nothing_is_served_fused_before_an_order_nor_after_a_failure() -> None:
    choice = Choice(ratio=0.0, interval_s=60.0)
    assert choice.take(1, now=0.0) == BASELINE
    choice.order("fused", None)
    choice.stay_on_baseline()
    assert (choice.path, choice.take(1, now=0.0)) == ("baseline", BASELINE)


def test_one_in_so_many_is_compared() -> None:
    choice = Choice(ratio=0.25, interval_s=1e9)
    choice.order("fused", None)
    compared = [choice.take(1, now=0.0).compare for _ in range(9)]
    assert compared == [True, False, False, False, True, False, False, False, True]


def test_and_at_least_one_in_an_interval() -> None:
    choice = Choice(ratio=0.001, interval_s=60.0)
    choice.order("fused", None)
    times = [0, 1, 59, 60, 61, 119, 120, 500]
    assert [choice.take(1, now=now).compare for now in times] == [True, False, False, True, False, False, True, True]


def test_a_ratio_of_one_compares_all_and_of_zero_none() -> None:
    for ratio, compare in ((1.0, True), (0.0, False)):
        choice = Choice(ratio, interval_s=60.0)
        choice.order("fused", None)
        assert {choice.take(1, now=100.0 * turn).compare for turn in range(5)} == {compare}
