"""The search finds planted optima, and the merge gives each range its row."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest

from fdmoe_kernels.tune.merge import NoCommonRowError, merge_rows
from fdmoe_kernels.tune.search import descend

Point = tuple[int, int]


def _steps(point: Point) -> Iterator[Point]:
    x, y = point
    yield from ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))


@pytest.mark.parametrize("start", [(0, 0), (9, 9), (4, 6)])
def test_the_planted_optimum_is_found_step_by_step(start: Point) -> None:
    tried: list[tuple[Point, Point | None]] = []

    def attempt(point: Point, best: Point | None) -> float:
        tried.append((point, best))
        x, y = point
        return 100 + (x - 4) ** 2 * 5 + (y - 6) ** 2 * 3

    assert descend(start, _steps, attempt, lambda: False) == (4, 6)
    assert tried[0] == (start, None)
    assert tried[-4:] == [(point, (4, 6)) for point in _steps((4, 6))]


def test_a_row_that_cannot_serve_and_a_gain_inside_the_noise_are_not_taken() -> None:
    times = {(0, 0): 100.0, (-1, 0): math.inf, (1, 0): 99.5, (0, -1): 101.0, (0, 1): 100.0}
    assert descend((0, 0), _steps, lambda point, _: times[point], lambda: False) == (0, 0)


def test_a_start_that_cannot_serve_is_left() -> None:
    assert descend((0, 0), _steps, lambda point, _: math.inf if point == (0, 0) else 1.0, lambda: False) == (-1, 0)


def test_it_stops_when_it_is_told_to() -> None:
    turns = itertools.count()
    tried: list[Point] = []

    def attempt(point: Point, _: Point | None) -> float:
        tried.append(point)
        return 100.0 * 0.9 ** len(tried)

    best = descend((0, 0), _steps, attempt, lambda: next(turns) >= 5)
    assert len(tried) <= 5
    assert best == tried[-1]


def _table(times: dict[float, list[dict[str, float]]]) -> list[tuple[float, str]]:
    cells = [(average, cell) for average, listed in times.items() for cell in listed]
    rows = sorted({row for _, cell in cells for row in cell})
    return merge_rows(cells, rows, lambda cell, row: cell.get(row, math.inf))


def test_each_range_gets_its_row_and_the_bound_lies_between() -> None:
    few, some, many = {"small": 0.8, "large": 1.0}, {"small": 0.9, "large": 1.0}, {"small": 1.5, "large": 0.9}
    times = {1.0: [few], 4.0: [some], 64.0: [many]}
    assert _table(times) == [(16.0, "small"), (math.inf, "large")]


def test_a_row_for_almost_nothing_is_not_worth_another_build() -> None:
    assert _table({1.0: [{"a": 0.900, "b": 0.903}], 4.0: [{"a": 1.0, "b": 0.8}]}) == [(math.inf, "b")]


def test_cells_of_one_average_share_the_row_that_is_best_for_both() -> None:
    both = [{"a": 0.7, "b": 0.8}, {"a": 1.2, "b": 0.9}]
    assert _table({4.0: both}) == [(math.inf, "b")]


def test_a_row_that_was_not_measured_in_a_cell_does_not_serve_it() -> None:
    assert _table({1.0: [{"a": 0.5, "c": 1.0}], 4.0: [{"c": 0.99}]}) == [(2.0, "a"), (math.inf, "c")]
    with pytest.raises(NoCommonRowError, match=r"averages \[4.0\] have no common row"):
        _table({4.0: [{"a": 1.0}, {"b": 1.0}]})
