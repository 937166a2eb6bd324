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

    On the fused path every batch of a bucket that is not proven is run as in shadow. Of the others one in 1 / `ratio`
    of each layer is compared, and at least one in `interval_s` while batches come, of the layer that has waited
    longest; none with ratio 0. A model calls its layers in turn: with one count for all, some would never be compared.
    """

    def __init__(self, ratio: float, interval_s: float) -> None:
        self._every = 1 / ratio if ratio else math.inf
        self._interval_s = interval_s
        self._path: Path = "baseline"
        self._buckets: frozenset[int] | None = None
        self._served: dict[str, int] = {}
        # which comparison was the last of each layer, 0 if none was
        self._last: dict[str, int] = {}
        self._comparisons = 0
        self._passed: set[str] = set()
        self._compared_at = -math.inf

    @property
    def path(self) -> Path:
        return self._path

    def order(self, path: Path, buckets: tuple[int, ...] | None) -> None:
        self._path, self._buckets = path, None if buckets is None else frozenset(buckets)

    def stay_on_baseline(self) -> None:
        """The fused path has just failed; the watchdog's next order says what follows."""
        self._path = "baseline"

    def take(self, layer: str, tokens: int, now: float) -> Taken:
        """For a batch of so many tokens of this layer; `now` on the caller's monotonic clock, in seconds."""
        if self._path == "baseline":
            return Taken("baseline", compare=False)
        if self._path == "shadow" or (self._buckets is not None and token_bucket(tokens) not in self._buckets):
            return Taken("baseline", compare=True)
        if math.isinf(self._every):
            return Taken("fused", compare=False)
        self._served[layer] = self._served.get(layer, 0) + 1
        self._last.setdefault(layer, 0)
        compare = self._served[layer] >= self._every or self._is_due(layer, now)
        if compare:
            self._served[layer], self._compared_at = 0, now
            self._comparisons += 1
            self._last[layer] = self._comparisons
            self._passed.clear()
        return Taken("fused", compare)

    def _is_due(self, layer: str, now: float) -> bool:
        if now - self._compared_at < self._interval_s:
            return False
        if layer in self._passed:
            # it comes again, and the one that has waited longest has not come: nobody may call that any more
            self._last = {passed: self._last[passed] for passed in self._passed}
            self._passed.clear()
        self._passed.add(layer)
        return self._last[layer] == min(self._last.values())
