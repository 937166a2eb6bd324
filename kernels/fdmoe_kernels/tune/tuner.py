"""The order of a search: each cell by itself, then the winners in the cells beside theirs, then the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic

from fdmoe_kernels.tune.merge import merge_rows
from fdmoe_kernels.tune.progress import Progress
from fdmoe_kernels.tune.search import descend
from fdmoe_kernels.tune.trials import Trials
from fdmoe_kernels.tuning.form import Form, R

# of the time there is; the rest is for the winners in the cells beside theirs
_SEARCH_SHARE = 0.8


class Stopped(Exception):
    """The user asked for an end; what was measured is in the journal."""


class Tuner(Generic[R]):
    """Searches rows of `form` for all `cells` in about `seconds`; `clock` counts seconds, `stopped` is the user's."""

    def __init__(
        self,
        form: Form[R],
        cells: Sequence[Callable[[], Trials[R]]],
        start: Callable[[float], R],
        *,
        seconds: float,
        clock: Callable[[], float],
        stopped: Callable[[], bool],
        progress: Progress,
    ) -> None:
        self._form, self._cells, self._start = form, cells, start
        self._clock, self._stopped, self._progress = clock, stopped, progress
        self._began, self._seconds = clock(), seconds

    def run(self) -> list[tuple[float, R]]:
        """The table's rows. Raises Stopped, and NoCommonRowError if cells of one average have no common row."""
        trials: list[Trials[R]] = []
        winners: list[R] = []
        starts: list[R] = []
        for index, make in enumerate(self._cells):
            trials.append(make())
            starts.append(self._start(trials[-1].average))
            winners.append(self._search(index, trials[-1], starts[-1]))
        self._compare(trials, winners, starts)
        rows = list(dict.fromkeys([*winners, *starts]))
        return merge_rows([(cell.average, cell) for cell in trials], rows, lambda cell, row: cell.time(row))

    def _search(self, index: int, trials: Trials[R], start: R) -> R:
        now, end = self._clock(), self._began + _SEARCH_SHARE * self._seconds
        deadline = now + max(end - now, 0.0) / (len(self._cells) - index)
        tried = 0
        best = math.inf

        def attempt(row: R, beside: R | None) -> float:
            nonlocal tried, best
            time = trials.attempt(row, beside)
            tried, best = tried + 1, min(best, time)
            self._progress.show(index, trials.cell, tried, best, deadline - self._clock())
            return time

        winner = descend(start, self._form.candidates, attempt, lambda: self._stopped() or self._clock() >= deadline)
        self._refuse_to_go_on()
        self._progress.line(f"{trials.cell}: {tried} tried, {trials.time(winner):.3f} of the time with {winner}")
        return winner

    def _compare(self, trials: Sequence[Trials[R]], winners: Sequence[R], starts: Sequence[R]) -> None:
        """Winners and first rows of a cell in the cells of the same average, which share a row, and of those beside."""
        averages = sorted({cell.average for cell in trials})
        for distance in (0, 1):
            for cell, best in zip(trials, winners, strict=True):
                for other, *rows in zip(trials, winners, starts, strict=True):
                    if abs(averages.index(other.average) - averages.index(cell.average)) != distance:
                        continue
                    for row in rows:
                        self._refuse_to_go_on()
                        if distance == 0 or self._clock() < self._began + self._seconds:
                            cell.attempt(row, best)

    def _refuse_to_go_on(self) -> None:
        if self._stopped():
            raise Stopped
