"""When the fused path is slow, as tables of batches: nanoseconds of the fused path, and of the baseline on the same."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.worker.pace import Figures, Pace, Verdict
from fdmoe_watchdog.settings import RecoverySettings

LAYER = "m/layers.0"
USUAL = (100, 300)
SLOW = (1000, 300)
SHARED, SLOW_SHARED = (800, 900), (4000, 900)
# late, and slower than the baseline, but no factor of three beyond what a neighbour excuses
A_BIT_SLOW, A_BIT_SLOW_SHARED = (500, 300), (1800, 900)
FINE, SUSPECT = Verdict(suspect=False), Verdict(suspect=True)
EXCUSED = Verdict(suspect=False, excused=Figures(*SHARED, *USUAL))


def both(pace: Pace, fused_ns: int, baseline_ns: int, layer: str = LAYER) -> Verdict:
    """A batch in the shadow, or one that the trickle compares."""
    pace.ran(layer, 16, fused_ns)
    return pace.compared(layer, 16, fused_ns, baseline_ns)


def asked(pace: Pace, pairs: list[tuple[int, int]]) -> dict[int, Verdict]:
    """By the batch's number, from 1 on, where the baseline runs on no batch that nobody asks for."""
    return {
        number: pace.compared(LAYER, 16, fused_ns, baseline_ns)
        for number, (fused_ns, baseline_ns) in enumerate(pairs, start=1)
        if pace.ran(LAYER, 16, fused_ns)
    }


def slow_at(pace: Pace, pairs: list[tuple[int, int]]) -> list[int]:
    return [number for number, verdict in asked(pace, pairs).items() if verdict.slow]


def learned(checks: int = 3) -> Pace:
    """16 tokens usually take 100 ns, and 300 ns on the baseline; three times as long is late."""
    pace = Pace(3.0, checks)
    for pair in ((9_000, 20_000), *[USUAL] * 5):
        assert pace.ran(LAYER, 16, pair[0])
        assert pace.compared(LAYER, 16, *pair) == FINE
    return pace


def test_the_first_batch_of_a_bucket_teaches_nothing_and_the_next_five_all_that_is_needed() -> None:
    pace = learned(checks=1)
    assert not pace.ran(LAYER, 16, 299)
    assert pace.ran(LAYER, 16, 300)
    assert pace.ran(LAYER, 17, 100), "another bucket"
    assert pace.ran("m/layers.1", 16, 100), "another layer"
    assert not pace.ran(LAYER, 9, 100), "the same bucket"


@pytest.mark.parametrize(("checks", "alone"), [(1, 0), (2, 1), (3, 1), (50, 25)])
def test_half_of_a_row_is_late_before_the_baseline_is_asked_and_both_decide(checks: int, alone: int) -> None:
    pace = learned(checks)
    assert [pace.ran(LAYER, 16, 1000) for _ in range(alone)] == [False] * alone
    for _ in range(checks - alone - 1):
        assert pace.ran(LAYER, 16, 1000)
        assert pace.compared(LAYER, 16, 1000, 310) == SUSPECT
    assert pace.ran(LAYER, 12, 1000)
    assert pace.compared(LAYER, 12, 1000, 310) == Verdict(suspect=True, slow=Figures(1000, 310, 100, 300))


def test_the_figures_are_medians_and_come_again_while_it_stays_slow() -> None:
    pace = learned()
    assert both(pace, 1000, 310) == SUSPECT
    assert both(pace, 1200, 290) == SUSPECT
    assert both(pace, 900, 300) == Verdict(suspect=True, slow=Figures(1000, 300, 100, 300))
    assert [both(pace, 1000, 300).slow is not None for _ in range(4)] == [False, False, True, False]


@pytest.mark.parametrize(
    ("fused_ns", "baseline_ns", "slow"),
    [(900, 300, False), (900, 101, False), (900, 100, True), (2700, 301, False), (2700, 300, True)],
)
def test_a_path_that_is_usually_the_slower_one_must_lose_the_factor_too(
    fused_ns: int, baseline_ns: int, slow: bool
) -> None:
    """As in the interpreter: 300 ns usually, and 100 ns on the baseline."""
    pace = Pace(3.0, 3)
    for _ in range(6):
        both(pace, 300, 100)
    verdicts = [both(pace, fused_ns, baseline_ns).slow is not None for _ in range(3)]
    assert verdicts == [False, False, slow]


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([(299, 300)] * 9, "below the limit"),
        ([(1000, 3000)] * 9, "a neighbour: both lost as much"),
        ([(1000, 3000), (1000, 300), (1000, 3000)] * 3, "a neighbour that takes turns with both"),
        ([(1000, 1001)] * 9, "slow, and still the faster path"),
        ([(1499, 1000)] * 9, "time slices, that both paths wait for: their ratio is near to 1"),
        ([(800, 300), (800, 300), (200, 300)] * 3, "never three in a row"),
    ],
)
def test_what_is_not_slow(pairs: list[tuple[int, int]], why: str) -> None:
    pace = learned()
    assert [both(pace, *pair).slow for pair in pairs] == [None] * 9, why


def test_a_batch_in_time_that_only_the_fused_path_served_ends_the_row() -> None:
    pace = learned()
    both(pace, 1000, 300)
    both(pace, 1000, 300)
    assert not pace.ran(LAYER, 16, 100)
    assert both(pace, 1000, 300) == SUSPECT


def test_what_is_usual_follows_the_batches_in_time() -> None:
    pace = learned()
    for _ in range(9):
        assert both(pace, 200, 600) == FINE
    assert both(pace, 599, 300) == FINE
    assert both(pace, 600, 300) == SUSPECT


def test_a_row_that_both_paths_lost_is_no_suspicion_any_more_and_the_limit_stays() -> None:
    pace = learned()
    assert [both(pace, *SHARED) for _ in range(9)] == [SUSPECT, SUSPECT, EXCUSED] + [FINE] * 6
    assert both(pace, *USUAL) == FINE
    assert both(pace, 300, 900) == SUSPECT


def test_that_a_row_is_excused_is_said_once_of_each() -> None:
    pace = learned()
    for _ in range(3):
        assert [both(pace, *SHARED) for _ in range(30)].count(EXCUSED) == 1
        assert not pace.ran(LAYER, 16, USUAL[0])


@pytest.mark.parametrize("slow", [SLOW, A_BIT_SLOW])
@pytest.mark.parametrize(
    ("before", "count", "why"),
    [
        ([], 50, "alone"),
        ([SHARED] * 25, 25, "the neighbour leaves as the baseline is asked"),
        ([SHARED] * 49, 101, "it leaves with one batch missing, and the row is excused"),
        ([SHARED] * 50, 100, "it leaves as the kernel becomes slow"),
        ([SHARED] * 60, 90, "it has just been excused"),
        ([SHARED] * 1000, 50, "it was there for long"),
        ([SHARED] * 60 + [USUAL] * 3, 50, "it left shortly before"),
        ([SHARED] * 60 + [USUAL] * 500, 50, "it left long before"),
        (([SHARED] * 99 + [USUAL]) * 5, 50, "it came and went"),
        ([SHARED] * 60 + [SLOW_SHARED] * 40, 50, "it leaves while the kernel is slow"),
    ],
)
def test_a_slow_kernel_is_found_beside_a_neighbour_and_after_it(
    before: list[tuple[int, int]], count: int, why: str, slow: tuple[int, int]
) -> None:
    """With its batch of that number. Were the neighbour's times the usual ones, the slow kernel would be in time."""
    pace = learned(checks=50)
    assert slow_at(pace, [*before, *[slow] * 150])[:1] == [len(before) + count], why


@pytest.mark.parametrize("beside", [0, 10, 25, 40, 49, 60, 75, 99])
def test_and_when_the_neighbour_of_a_slow_kernel_leaves(beside: int) -> None:
    """At any time: 150 slow batches are what a fault gives the bucket."""
    pace = learned(checks=50)
    assert slow_at(pace, [SHARED] * 60) == []
    assert slow_at(pace, [SLOW_SHARED] * beside + [SLOW] * (150 - beside))


@pytest.mark.parametrize(("beside", "count"), [(0, 90), (90, 190), (500, 590)])
def test_what_a_neighbour_hides_is_found_once_it_leaves(beside: int, count: int) -> None:
    """At the next verdict of the row, which no batch in time has ended."""
    pace = learned(checks=50)
    assert slow_at(pace, [SHARED] * 60 + [A_BIT_SLOW_SHARED] * beside + [A_BIT_SLOW] * 150)[:1] == [60 + count]


@pytest.mark.parametrize("row", [50, 51, 99, 150, 1000])
def test_a_neighbour_that_comes_and_goes_is_no_slow_kernel(row: int) -> None:
    assert slow_at(learned(checks=50), ([SHARED] * row + [USUAL] * 3) * 20) == []


def test_the_figures_beside_a_neighbour_are_those_of_now_and_the_usual_ones() -> None:
    pace = learned()
    verdicts = [both(pace, *pair) for pair in [SHARED] * 3 + [SLOW] * 6]
    assert verdicts == [SUSPECT, SUSPECT, EXCUSED] + [FINE] * 5 + [Verdict(suspect=True, slow=Figures(*SLOW, *USUAL))]


@pytest.mark.parametrize(
    ("usual", "excused", "now", "slow"),
    [
        ((100, 300), (800, 800), (2999, 1000), False),
        ((100, 300), (800, 800), (3000, 1000), True),
        ((100, 100), (800, 2400), (2999, 1000), False),
        ((100, 100), (800, 2400), (3000, 1000), True),
        # the baseline is as fast as usual: no neighbour excuses anything
        ((100, 300), (800, 800), (584, 390), False),
        ((100, 300), (800, 800), (585, 390), True),
        ((100, 300), (800, 800), (585, 391), False),
    ],
)
def test_a_row_after_an_excused_one_must_lose_against_the_worse_of_both_while_the_baseline_is_slow(
    usual: tuple[int, int], excused: tuple[int, int], now: tuple[int, int], slow: bool
) -> None:
    pace = Pace(3.0, 3)
    for _ in range(6):
        both(pace, *usual)
    for _ in range(3):
        both(pace, *excused)
    assert not pace.ran(LAYER, 16, 100)
    assert [both(pace, *now).slow is not None for _ in range(3)] == [False, False, slow]


@pytest.mark.parametrize(
    ("pairs", "numbers", "why"),
    [
        ([SHARED] * 40, [5, 6, 7, 8, 23, 24, 39, 40], "half of the first row, then a quarter of 8 in each 16"),
        ([SHARED] * 8 + [USUAL] + [SHARED] * 8, [5, 6, 7, 8, 16, 17], "a new row, and the same neighbour"),
    ],
)
def test_a_neighbour_that_stays_costs_few_comparisons(
    pairs: list[tuple[int, int]], numbers: list[int], why: str
) -> None:
    assert list(asked(learned(checks=8), pairs)) == numbers, why


def test_a_comparison_in_time_forgets_what_was_excused() -> None:
    pace = learned(checks=8)
    asked(pace, [SHARED] * 8)
    assert both(pace, *USUAL) == FINE
    assert list(asked(pace, [SHARED] * 8)) == [5, 6, 7, 8]


def test_one_layer_says_nothing_of_another() -> None:
    pace = learned()
    for _ in range(6):
        both(pace, *USUAL, layer="m/layers.1")
    found = [both(pace, 1000, 300, layer).slow is not None for layer in (LAYER, "m/layers.1") * 3]
    assert found == [False, False, False, False, True, True]


def test_without_checks_nothing_is_asked_for_and_nothing_slow() -> None:
    pace = Pace(factor=3.0, checks=0)
    for fused_ns in (100,) * 9 + (10_000,) * 9:
        assert not pace.ran(LAYER, 16, fused_ns)
        assert pace.compared(LAYER, 16, fused_ns, 300) == FINE


def time_sliced(kernel_us: int, share: float, count: int) -> Iterator[tuple[int, int]]:
    """Pairs on a GPU that a neighbour takes for 2 ms at a time: each millisecond of ours meets it with this chance."""
    chance = random.Random(7)
    for _ in range(count):
        fused, baseline = (
            us + 2000 * sum(chance.random() < share for _ in range(1 + us // 1000)) for us in (kernel_us, 850)
        )
        yield fused * 1000, baseline * 1000


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
def test_a_gpu_that_a_neighbour_shares_is_no_slow_kernel_and_a_slow_kernel_is_found_on_it(share: float) -> None:
    """With the defaults for a GPU: 320 us for what takes the baseline 850 us, or ten times as long."""
    defaults = RecoverySettings()
    pace = Pace(defaults.slow_factor, defaults.slow_checks)
    for _ in range(6):
        both(pace, 320_000, 850_000)
    for fused_ns, baseline_ns in time_sliced(320, share, 50_000):
        if pace.ran(LAYER, 16, fused_ns):
            assert pace.compared(LAYER, 16, fused_ns, baseline_ns).slow is None
    assert any(both(pace, *pair).slow for pair in time_sliced(3200, share, 500))


@given(st.lists(st.tuples(st.integers(1, 100), st.floats(0.5, 50.0)), min_size=1, max_size=80))
def test_a_kernel_that_keeps_its_share_of_the_baseline_is_never_slow(batches: list[tuple[int, float]]) -> None:
    """Whatever the device and the sizes do: fused times with any jump, and a baseline within 1.4 of the same jump."""
    pace = Pace(factor=2.5, checks=1)
    for size, jump in batches:
        fused_ns = round(1000 * size * jump)
        baseline_ns = round(fused_ns * (1.2 + 0.4 * (size % 2)))
        assert both(pace, fused_ns, baseline_ns).slow is None
