"""Trying again while a Grafana is not to be had, with pauses that double, until a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from fdmoe_ops.grafana.errors import Unavailable

T = TypeVar("T")
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 8.0


def pause_s(tries: int, retry_after_s: float) -> float:
    """Before the next try, after so many; at least what Grafana itself has asked for."""
    return max(min(FIRST_PAUSE_S * 2.0 ** min(tries - 1, 10), LONGEST_PAUSE_S), retry_after_s)


@dataclass(frozen=True)
class Patience:
    """`clock` in seconds, `sleep` takes seconds."""

    deadline_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep

    def persist(self, call: Callable[[], T]) -> T:
        """What `call` returns. Raises its Unavailable once there is no time for another try, all else at once."""
        deadline = self.clock() + self.deadline_s
        tries = 0
        while True:
            try:
                return call()
            except Unavailable as error:
                tries += 1
                wait_s = pause_s(tries, error.retry_after_s)
                if self.clock() + wait_s > deadline:
                    raise Unavailable(f"{error} (tried {_times(tries)} in {self.deadline_s:g} s)") from error
                self.sleep(wait_s)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
