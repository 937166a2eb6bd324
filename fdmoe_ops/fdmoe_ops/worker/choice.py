"""Which path a batch takes, and whether the other one runs too and is compared. No clock, no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fdmoe_watchdog.buckets import token_bucket
from fdmoe_watchdog.messages import Path


@dataclass(frozen=True, slots=True)
class Taken:
    """`path` gives the answer; with `compare` the other path runs on the batch, too."""

    path: Path
    compare: bool


class Choice:
    """What the watchdog ordered, applied batch by batch.

    On the fused path every batch of a bucket that is not proven is run as in shadow, and of the others one in
    1 / `ratio` is compared, and at least one in `interval_s` while batches come; none with ratio 0.
    """

    def __init__(self, ratio: float, interval_s: float) -> None:
        self._every = 1 / ratio if ratio else math.inf
        self._interval_s = interval_s
        self._path: Path = "baseline"
        self._buckets: frozenset[int] | None = None
        self._served = 0
        self._compared_at = -math.inf

    @property
    def path(self) -> Path:
        return self._path

    def order(self, path: Path, buckets: tuple[int, ...] | None) -> None:
        self._path, self._buckets = path, None if buckets is None else frozenset(buckets)

    def stay_on_baseline(self) -> None:
        """The fused path has just failed; the watchdog's next order says what follows."""
        self._path = "baseline"

    def take(self, tokens: int, now: float) -> Taken:
        """For a batch of so many tokens; `now` on the caller's monotonic clock, in seconds."""
        if self._path == "baseline":
            return Taken("baseline", compare=False)
        if self._path == "shadow" or (self._buckets is not None and token_bucket(tokens) not in self._buckets):
            return Taken("baseline", compare=True)
        self._served += 1
        compare = self._served >= self._every or (
            now - self._compared_at >= self._interval_s and not math.isinf(self._every)
        )
        if compare:
            self._served, self._compared_at = 0, now
        return Taken("fused", compare)
