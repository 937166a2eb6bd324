"""When the fused path is slow, as tables of batches: nanoseconds of the fused path, and of the baseline on the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.worker.pace import Figures, Pace, Verdict

LAYER = "m/layers.0"
USUAL = (100, 300)
FINE, SUSPECT = Verdict(suspect=False), Verdict(suspect=True)


def learned(factor: float = 3.0, checks: int = 3) -> Pace:
    """16 tokens usually take 100 ns, and 300 ns on the baseline."""
    pace = Pace(factor, checks)
    for pair in ((9_000, 20_000), *[USUAL] * 5):
        assert pace.wants_baseline(LAYER, 16, pair[0])
        assert pace.compared(LAYER, 16, *pair) == FINE
    return pace


def test_the_first_batch_of_a_bucket_teaches_nothing_and_the_next_five_all_that_is_needed() -> None:
    pace = learned()
    assert not pace.wants_baseline(LAYER, 16, 299)
    assert pace.wants_baseline(LAYER, 16, 300)
    assert pace.wants_baseline(LAYER, 17, 100), "another bucket"
    assert pace.wants_baseline("m/layers.1", 16, 100), "another layer"
    assert not pace.wants_baseline(LAYER, 9, 100), "the same bucket"


def test_slow_are_so_many_batches_in_a_row_that_lost_by_themselves_and_against_the_baseline() -> None:
    pace = learned()
    assert pace.compared(LAYER, 16, 1000, 310) == SUSPECT
    assert pace.compared(LAYER, 12, 1200, 290) == SUSPECT
    assert pace.compared(LAYER, 16, 900, 300) == Verdict(suspect=True, slow=Figures(1000, 300, 100, 300))
    # and once more, if it stays like that
    assert [pace.compared(LAYER, 16, 1000, 300).slow is not None for _ in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([(299, 300)] * 9, "below the limit"),
        ([(1000, 3000)] * 9, "a neighbour: both lost as much"),
        ([(1000, 3000), (1000, 300), (1000, 3000)] * 3, "a neighbour that takes turns with both"),
        ([(1000, 1001)] * 9, "slow, and still the faster path"),
        ([(800, 300), (800, 300), (200, 300)] * 3, "never three in a row"),
    ],
)
def test_what_is_not_slow(pairs: list[tuple[int, int]], why: str) -> None:
    pace = learned()
    assert [pace.compared(LAYER, 16, *pair).slow for pair in pairs] == [None] * 9, why


def test_a_good_batch_that_only_the_fused_path_served_ends_the_row() -> None:
    pace = learned()
    pace.compared(LAYER, 16, 1000, 300)
    pace.compared(LAYER, 16, 1000, 300)
    assert not pace.wants_baseline(LAYER, 16, 100)
    assert pace.compared(LAYER, 16, 1000, 300) == SUSPECT


def test_a_device_that_is_slower_for_all_becomes_the_usual_and_a_faster_one_again() -> None:
    pace = learned()
    found = [pace.compared(LAYER, 16, 1000, 3000) for _ in range(4)]
    assert found == [SUSPECT, SUSPECT, FINE, FINE]
    assert not pace.wants_baseline(LAYER, 16, 2999)
    for _ in range(9):
        assert pace.compared(LAYER, 16, *USUAL) == FINE
    assert pace.wants_baseline(LAYER, 16, 300)


def test_one_layer_says_nothing_of_another() -> None:
    pace = learned()
    for _ in range(6):
        pace.compared("m/layers.1", 16, *USUAL)
    found = [pace.compared(layer, 16, 1000, 300).slow is not None for layer in (LAYER, "m/layers.1") * 3]
    assert found == [False, False, False, False, True, True]


def test_without_checks_nothing_is_asked_for_and_nothing_slow() -> None:
    pace = Pace(factor=3.0, checks=0)
    for fused_ns in (100,) * 9 + (10_000,) * 9:
        assert not pace.wants_baseline(LAYER, 16, fused_ns)
        assert pace.compared(LAYER, 16, fused_ns, 300) == FINE


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.5, 50.0)), min_size=1, max_size=80))
def test_a_kernel_that_keeps_its_share_of_the_baseline_is_never_slow(batches: list[tuple[int, float]]) -> None:
    """Whatever the device and the sizes do: fused times with any jump, and a baseline within 1.4 of the same jump."""
    pace = Pace(factor=2.5, checks=1)
    for size, jump in batches:
        fused_ns = round(1000 * size * jump)
        baseline_ns = round(fused_ns * (1.2 + 0.4 * (size % 2)))
        pace.wants_baseline(LAYER, 16, fused_ns)
        assert pace.compared(LAYER, 16, fused_ns, baseline_ns).slow is None
