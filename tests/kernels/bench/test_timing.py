"""How many rounds a cell gets."""

from __future__ import annotations

import pytest

from fdmoe_kernels.timing import rounds_within


@pytest.mark.parametrize(
    ("round_s", "repetitions", "budget_s", "rounds"),
    [
        (0.001, 120, 2.0, 40),  # cheap: as many as asked for, three runs a round
        (0.1, 120, 2.0, 20),  # as many as the budget holds
        (0.5, 120, 1.0, 4),  # dear: the ten runs that a median needs
        (0.5, 3, 1.0, 4),
        (0.0, 30, 1.0, 10),
    ],
)
def test_rounds_within_a_budget(round_s: float, repetitions: int, budget_s: float, rounds: int) -> None:
    assert rounds_within(round_s, repetitions=repetitions, budget_s=budget_s) == rounds
