"""How long the fused path takes, by its own usual and by the baseline's: tells a slow kernel from a slow device.

A GPU that a neighbour shares, or that is throttled, makes both paths slow, and more experts in a batch do it, too. So a
fused batch that took `factor` times its usual is only a suspicion: the baseline runs on the same batch. After `checks`
suspicions in a row, the times of both paths decide: the kernel is slow if it lost `factor` against the baseline, too,
and the baseline is faster now. Otherwise what was seen is the new usual.

                 below the limit                          the baseline lost as much, or is still the slower one
             +--------------------+                     +---------------------------------------------------------+
             v                    |                     v                                                         |
    learning ---- five pairs ---> usual -- above --> suspect (1 .. checks) ------ the fused path alone lost ---> slow

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
    """Medians in nanoseconds: of the suspicious batches, and of those before."""

    fused_ns: int
    baseline_ns: int
    usual_fused_ns: int
    usual_baseline_ns: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """On one batch that ran on both paths: `suspect` if it took too long on the fused one; `slow` once it is proven."""

    suspect: bool
    slow: Figures | None = None


_FINE = Verdict(suspect=False)


@dataclass(slots=True)
class _Bucket:
    """`usual`, `suspects`: pairs of fused and baseline nanoseconds; `limit_ns`: a fused batch is suspicious from it on,
    None while that is being learned."""

    limit_ns: float | None = None
    pairs_seen: int = 0
    usual: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_USUAL_PAIRS))
    suspects: list[tuple[int, int]] = field(default_factory=list)


class Pace:
    """`checks` of 0: nothing is ever slow, and nothing is learned."""

    def __init__(self, factor: float, checks: int) -> None:
        self._factor = factor
        self._checks = checks
        self._buckets: dict[tuple[str, int], _Bucket] = {}

    def wants_baseline(self, layer: str, tokens: int, fused_ns: int) -> bool:
        """Whether a batch that the fused path has served in so long is to run on the baseline, too."""
        if not self._checks:
            return False
        bucket = self._bucket(layer, tokens)
        if bucket.limit_ns is None or fused_ns >= bucket.limit_ns:
            return True
        bucket.suspects.clear()
        return False

    def compared(self, layer: str, tokens: int, fused_ns: int, baseline_ns: int) -> Verdict:
        """A batch that ran well on both paths."""
        if not self._checks:
            return _FINE
        bucket, pair = self._bucket(layer, tokens), (fused_ns, baseline_ns)
        bucket.pairs_seen += 1
        if bucket.limit_ns is not None and fused_ns >= bucket.limit_ns:
            return self._suspect(bucket, pair)
        bucket.suspects.clear()
        if bucket.pairs_seen > 1:
            bucket.usual.append(pair)
            if bucket.limit_ns is not None or len(bucket.usual) >= _LEARNING_PAIRS:
                self._set_limit(bucket)
        return _FINE

    def _bucket(self, layer: str, tokens: int) -> _Bucket:
        key = (layer, token_bucket(tokens))
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
        return bucket

    def _suspect(self, bucket: _Bucket, pair: tuple[int, int]) -> Verdict:
        bucket.suspects.append(pair)
        if len(bucket.suspects) < self._checks:
            return Verdict(suspect=True)
        figures = Figures(*_medians(bucket.suspects), *_medians(bucket.usual))
        now = figures.fused_ns / max(figures.baseline_ns, 1)
        usual = figures.usual_fused_ns / max(figures.usual_baseline_ns, 1)
        if now > 1 and now >= self._factor * usual:
            bucket.suspects.clear()
            return Verdict(suspect=True, slow=figures)
        bucket.usual.clear()
        bucket.usual.extend(bucket.suspects)
        bucket.suspects.clear()
        self._set_limit(bucket)
        return _FINE

    def _set_limit(self, bucket: _Bucket) -> None:
        fused_ns, _ = _medians(bucket.usual)
        bucket.limit_ns = math.ceil(self._factor * fused_ns)


def _medians(pairs: list[tuple[int, int]] | deque[tuple[int, int]]) -> tuple[int, int]:
    fused, baseline = zip(*pairs, strict=True)
    return int(median(fused)), int(median(baseline))
