"""How long the fused path takes, by its own usual and by the baseline's: tells a slow kernel from a slow device.

A GPU that a neighbour shares, or that is throttled, makes both paths slow, and more experts in a batch do it, too. So
fused batches that took `factor` times their usual are only a suspicion. After half of `checks` in a row the baseline
runs on the same batches, and with the last one the times of both decide: the kernel is slow if it lost `factor` against
the baseline, too, and the baseline is faster now. Otherwise what was seen is the new usual.

    learning -- five pairs --> usual -- a late batch --> suspect -- as many in a row as checks --> slow, or a new usual
                                 ^                          |
                                 +--- a batch in time ------+

A neighbour that takes turns with us makes some batches late and others not, of both paths: it costs no comparison, and
it cannot make a whole row of one path late and most of the other not.

All of it per layer and token bucket. The first batch of a bucket teaches nothing: memory and caches are new to it.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import median

from fdmoe_watchdog.buckets import token_bucket

_LEARNING_PAIRS = 5
_USUAL_PAIRS = 9


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians in nanoseconds: of the late batches that ran on both paths, and of those before."""

    fused_ns: int
    baseline_ns: int
    usual_fused_ns: int
    usual_baseline_ns: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one batch that ran on both paths: `suspect` if it was late on the fused one; `slow` once it is proven."""

    suspect: bool
    slow: Figures | None = None


_FINE = Verdict(suspect=False)


@dataclass(slots=True)
class _Bucket:
    """`limit_ns`: a fused batch is late from it on; None while that is being learned. `late`: so many in a row.
    `usual`, `suspects`: pairs of fused and baseline nanoseconds."""

    limit_ns: float | None = None
    pairs_seen: int = 0
    late: int = 0
    usual: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_USUAL_PAIRS))
    suspects: list[tuple[int, int]] = field(default_factory=list)


class Pace:
    """`checks` of 0: nothing is ever slow, and nothing is learned."""

    def __init__(self, factor: float, checks: int) -> None:
        self._factor = factor
        self._checks = checks
        self._buckets: dict[tuple[str, int], _Bucket] = {}

    def ran(self, layer: str, tokens: int, fused_ns: int) -> bool:
        """A fused batch took so long, in the shadow or not; whether the baseline is to run on it, too."""
        if not self._checks:
            return False
        bucket = self._bucket(layer, tokens)
        if bucket.limit_ns is None:
            return True
        if fused_ns < bucket.limit_ns:
            bucket.late = 0
            bucket.suspects.clear()
            return False
        bucket.late += 1
        return bucket.late > self._checks // 2

    def compared(self, layer: str, tokens: int, fused_ns: int, baseline_ns: int) -> Verdict:
        """The batch that `ran` last did well on both paths."""
        if not self._checks:
            return _FINE
        bucket = self._bucket(layer, tokens)
        bucket.pairs_seen += 1
        if bucket.late:
            return self._judge(bucket, (fused_ns, baseline_ns))
        if bucket.pairs_seen > 1:
            bucket.usual.append((fused_ns, baseline_ns))
            if bucket.limit_ns is not None or len(bucket.usual) >= _LEARNING_PAIRS:
                self._set_limit(bucket)
        return _FINE

    def _bucket(self, layer: str, tokens: int) -> _Bucket:
        key = (layer, token_bucket(tokens))
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
        return bucket

    def _judge(self, bucket: _Bucket, pair: tuple[int, int]) -> Verdict:
        bucket.suspects.append(pair)
        if bucket.late < self._checks:
            return Verdict(suspect=True)
        figures = Figures(*_medians(bucket.suspects), *_medians(bucket.usual))
        now = figures.fused_ns / max(figures.baseline_ns, 1)
        usual = figures.usual_fused_ns / max(figures.usual_baseline_ns, 1)
        slow = now > 1 and now >= self._factor * usual
        if not slow:
            bucket.usual.clear()
            bucket.usual.extend(bucket.suspects)
            self._set_limit(bucket)
        bucket.late = 0
        bucket.suspects.clear()
        return Verdict(suspect=True, slow=figures) if slow else _FINE

    def _set_limit(self, bucket: _Bucket) -> None:
        fused_ns, _ = _medians(bucket.usual)
        bucket.limit_ns = math.ceil(self._factor * fused_ns)


def _medians(pairs: list[tuple[int, int]] | deque[tuple[int, int]]) -> tuple[int, int]:
    fused, baseline = zip(*pairs, strict=True)
    return int(median(fused)), int(median(baseline))
