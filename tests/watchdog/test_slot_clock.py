"""The age of each CTA's line, from readings alone."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_watchdog.slot_clock import SlotClock


def page(*values: int) -> bytes:
    """One slot per value, which is in its last word."""
    return b"".join(struct.pack("<56xQ", value) for value in values)


def test_a_line_is_as_old_as_its_last_change() -> None:
    clock = SlotClock()
    assert clock.ages_s(5.0) == ()
    clock.read(page(1, 1, 1), 10.0)
    clock.read(page(1, 2, 1), 11.0)
    clock.read(page(1, 2, 1), 12.0)
    clock.read(page(1, 2, 3), 13.5)
    assert clock.ages_s(14.0) == (4.0, 3.0, 0.5)
    # a beat that says the same is none, and a line that changes back has changed
    clock.read(page(1, 1, 3), 15.0)
    assert clock.ages_s(15.0) == (5.0, 0.0, 1.5)


def test_another_page_starts_anew() -> None:
    clock = SlotClock()
    clock.read(page(1, 2), 1.0)
    clock.read(page(1, 2, 3), 2.0)
    assert clock.ages_s(2.5) == (0.5, 0.5, 0.5)
    clock.read(b"", 3.0)
    assert clock.ages_s(4.0) == ()


@pytest.mark.parametrize("count", [1, 132, 768])
def test_each_of_many_lines_is_told_apart(count: int) -> None:
    chosen = random.Random(count).randrange(count)
    clock = SlotClock()
    clock.read(page(*[0] * count), 0.0)
    clock.read(page(*(int(line == chosen) for line in range(count))), 1.0)
    assert [line for line, age in enumerate(clock.ages_s(3.0)) if age == 2.0] == [chosen]


@given(readings=st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=20))
def test_any_history(readings: list[list[int]]) -> None:
    clock = SlotClock()
    changed = [0.0] * 3
    for now, values in enumerate(readings):
        clock.read(page(*values), float(now))
        for line in range(3):
            if now and values[line] != readings[now - 1][line]:
                changed[line] = float(now)
    assert clock.ages_s(100.0) == tuple(100.0 - at for at in changed)
