"""The search: coordinate descent from the row there is, in steps that pay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

R = TypeVar("R")

# a smaller gain is inside the noise of a measurement
GAIN = 0.01


def descend(
    start: R, candidates: Callable[[R], Iterable[R]], attempt: Callable[[R, R | None], float], stop: Callable[[], bool]
) -> R:
    """The best row found from `start`: the first candidate near the best that is GAIN faster becomes the best, until
    none is or `stop` says so. `attempt` measures a row beside the best (None for the start) and returns its time,
    infinity for a row that cannot serve; it remembers what it has measured."""
    best, best_time = start, attempt(start, None)
    improved = True
    while improved and not stop():
        improved = False
        for candidate in candidates(best):
            if stop():
                break
            time = attempt(candidate, best)
            if time < best_time * (1 - GAIN):
                best, best_time, improved = candidate, time, True
                break
    return best
