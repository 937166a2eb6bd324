"""How long the fused path takes, by its own usual and by the baseline's: tells a slow kernel from a slow device.

A GPU that a neighbour shares, or that is throttled, makes both paths slow, and more experts in a batch do it, too. So
fused batches that took `factor` times their usual are only a suspicion. After half of `checks` in a row the baseline
runs on the same batches, and with the last one the times of both decide: the kernel is slow if it lost `factor` against
the baseline, too, and takes half as long again as the baseline now. Otherwise the row is excused.

    learning -- five pairs --> usual -- a late batch --> suspect -- as many in a row as checks --> judged --> slow
                                 ^                          |                                      |    ^
                                 |                          |                                      v    | twice as many
                                 +----- a batch in time ----+----------------------------------- excused -- late again

What excused a row is no new usual: by a neighbour's times a kernel that is ten times as slow would be in time. So the
limit stays, and the row is judged again for as long as it lasts: the neighbour may leave, and the kernel be slow. That
needs fewer comparisons, and none of them is a suspicion. While the baseline is slow as well, the row must also lose
against what was excused, and so must the bucket's next ones, until a batch in time has run on both paths.

One neighbour that takes turns with us makes some batches late and others not, of both paths: it costs no comparison.
Several make whole rows late, but not of one path and most of the other not.

All of it per layer and token bucket. The first batch of a bucket teaches nothing: memory and caches are new to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from fdmoe_watchdog.buckets import token_bucket

_LEARNING_PAIRS = 5
_USUAL_PAIRS = 9
# A slow kernel takes so many times as long as the baseline. On a GPU that is shared in time slices both paths wait
# longer than they work, and their ratio goes to 1, whatever it was.
_SLOW_RATIO = 1.5
# An excused row is judged again after so many times `checks`. With fewer a neighbour that stays costs more comparisons,
# now 13 % of the batches with 50 checks; with more a kernel that becomes slow beside it is found later.
_AGAIN_AFTER = 2
# The baseline takes so many times its usual where a neighbour is at work (simulated, two slices in turn: three times).
_SHARED = 1.3


class _Times(NamedTuple):
    """In nanoseconds, of one batch on both paths or medians of several."""

    fused: int
    baseline: int

    @property
    def ratio(self) -> float:
        return self.fused / max(self.baseline, 1)


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians in nanoseconds: of the late batches that ran on both paths, and of those before."""

    fused_ns: int
    baseline_ns: int
    usual_fused_ns: int
    usual_baseline_ns: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one batch that ran on both paths: `suspect` if it was late on the fused one and its row is not excused; `slow`
    once it is proven, `excused` once it is not, of each row the first time."""

    suspect: bool
    slow: Figures | None = None
    excused: Figures | None = None


_FINE = Verdict(suspect=False)


@dataclass(slots=True)
class _Bucket:
    """`limit_ns`: a fused batch is late from it on; None while that is being learned. `late`: so many in a row; of them
    `suspects` ran on both paths since the last verdict. `excuses`: so often was this row excused. `excused`: the times
    of the first row that was, since a batch in time ran on both paths."""

    limit_ns: float | None = None
    pairs_seen: int = 0
    usual: deque[_Times] = field(default_factory=lambda: deque(maxlen=_USUAL_PAIRS))
    late: int = 0
    suspects: list[_Times] = field(default_factory=list)
    excuses: int = 0
    excused: _Times | None = None

    def end_row(self) -> None:
        self.late = 0
        self.suspects.clear()
        self.excuses = 0


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
            bucket.end_row()
            return False
        bucket.late += 1
        return bucket.late > self._due(bucket) - self._pairs_needed(bucket)

    def compared(self, layer: str, tokens: int, fused_ns: int, baseline_ns: int) -> Verdict:
        """The batch that `ran` last did well on both paths."""
        if not self._checks:
            return _FINE
        bucket = self._bucket(layer, tokens)
        bucket.pairs_seen += 1
        if bucket.late:
            return self._judge(bucket, _Times(fused_ns, baseline_ns))
        bucket.excused = None
        if bucket.pairs_seen > 1:
            bucket.usual.append(_Times(fused_ns, baseline_ns))
            if bucket.limit_ns is not None or len(bucket.usual) >= _LEARNING_PAIRS:
                self._set_limit(bucket)
        return _FINE

    def _bucket(self, layer: str, tokens: int) -> _Bucket:
        key = (layer, token_bucket(tokens))
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
        return bucket

    def _due(self, bucket: _Bucket) -> int:
        """Its row is judged when so many batches are late."""
        return self._checks * (1 + _AGAIN_AFTER * bucket.excuses)

    def _pairs_needed(self, bucket: _Bucket) -> int:
        """So many late batches before a verdict run on both paths: half of `checks`, half of that after an excuse."""
        half = self._checks - self._checks // 2
        return half if bucket.excused is None else half - half // 2

    def _judge(self, bucket: _Bucket, times: _Times) -> Verdict:
        bucket.suspects.append(times)
        if bucket.late < self._due(bucket):
            return Verdict(suspect=not bucket.excuses)
        now, usual = _medians(bucket.suspects), _medians(bucket.usual)
        before = usual.ratio
        if bucket.excused is not None and now.baseline > _SHARED * usual.baseline:
            before = max(before, bucket.excused.ratio)
        if now.ratio >= max(_SLOW_RATIO, self._factor * before):
            bucket.end_row()
            return Verdict(suspect=True, slow=Figures(*now, *usual))
        # the first one counts: the later ones may have a kernel in them that becomes slow beside the neighbour
        bucket.excused = bucket.excused or now
        bucket.excuses += 1
        bucket.suspects.clear()
        return Verdict(suspect=False, excused=Figures(*now, *usual)) if bucket.excuses == 1 else _FINE

    def _set_limit(self, bucket: _Bucket) -> None:
        bucket.limit_ns = math.ceil(self._factor * _medians(bucket.usual).fused)


def _medians(pairs: Iterable[_Times]) -> _Times:
    fused, baseline = zip(*pairs, strict=True)
    return _Times(int(median(fused)), int(median(baseline)))
