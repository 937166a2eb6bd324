"""How often another try comes, by a clock that only sleeping moves."""

from __future__ import annotations

import pytest

from fdmoe_ops.grafana.errors import NotAllowed, Unavailable
from fdmoe_ops.grafana.patience import Patience


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


def patience(deadline_s: float) -> tuple[Patience, Clock]:
    clock = Clock()
    return Patience(deadline_s, lambda: clock.now, clock.sleep), clock


def test_pauses_double_up_to_a_ceiling_until_there_is_no_time_for_another_try() -> None:
    patient, clock = patience(30.0)
    tries = []

    def away() -> None:
        tries.append(clock.now)
        raise Unavailable("away")

    with pytest.raises(Unavailable, match=r"^away \(tried 8 times in 30 s\)$"):
        patient.persist(away)
    assert clock.sleeps == [0.25, 0.5, 1, 2, 4, 8, 8]
    assert len(tries) == 8


def test_grafanas_own_word_counts_where_it_is_longer() -> None:
    patient, clock = patience(30.0)
    answers = iter([Unavailable("busy", 3.0), Unavailable("busy", 0.1), None])

    def busy() -> str:
        if error := next(answers):
            raise error
        return "done"

    assert patient.persist(busy) == "done"
    assert clock.sleeps == [3.0, 0.5]


def test_what_would_end_the_same_way_is_not_tried_again() -> None:
    patient, clock = patience(30.0)
    with pytest.raises(NotAllowed):
        patient.persist(lambda: (_ for _ in ()).throw(NotAllowed("no")))
    assert clock.sleeps == []
