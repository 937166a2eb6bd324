"""From the measured cells to a table: few rows, each for a range of tokens per expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

C = TypeVar("C")
R = TypeVar("R")

# a row must gain this much in all the cells together: it costs each layer another build, or at least attention
ROW_COST = math.log(1.01)


class NoCommonRowError(RuntimeError):
    """Cells of one average have no row that can serve all of them."""


def merge_rows(
    cells: Sequence[tuple[float, C]], rows: Sequence[R], time: Callable[[C, R], float]
) -> list[tuple[float, R]]:
    """The table's rows by rising bound, the last without one (infinity).

    cells  each with its tokens per expert; those with the same number get the same row
    rows   what may be chosen
    time   of a row in a cell, relative to any fixed time of that cell; infinity if not known

    The ranges and rows with the smallest sum of log(time) + ROW_COST a range, by dynamic programming. A bound is the
    geometric mean of the averages beside it. Raises NoCommonRowError for cells of one average without one.
    """
    averages = sorted({average for average, _ in cells})
    groups = [[cell for average, cell in cells if average == wanted] for wanted in averages]
    costs = [[_log_sum(time(cell, row) for cell in group) for row in rows] for group in groups]
    best: list[tuple[float, list[tuple[int, R]]]] = [(0.0, [])]
    for end in range(1, len(groups) + 1):
        options = []
        for begin in range(end):
            before, chosen = best[begin]
            totals = [sum(costs[group][index] for group in range(begin, end)) for index in range(len(rows))]
            index = min(range(len(rows)), key=totals.__getitem__)
            options.append((before + totals[index] + ROW_COST, [*chosen, (end, rows[index])]))
        best.append(min(options, key=lambda option: option[0]))
    total, chosen = best[-1]
    if total == math.inf:
        raise NoCommonRowError(f"cells of the averages {averages} have no common row that was measured in each")
    return [
        (math.inf if end == len(averages) else _between(averages[end - 1], averages[end]), row) for end, row in chosen
    ]


def _log_sum(times: Iterable[float]) -> float:
    return sum((math.log(time) if time < math.inf else math.inf for time in times), 0.0)


def _between(low: float, high: float) -> float:
    return float(f"{math.sqrt(low * high):.3g}")
