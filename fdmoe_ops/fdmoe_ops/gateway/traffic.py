"""The gateway's traffic between two of its beats, in a few numbers: what the watchdog's status page draws.

A scrape has counters and buckets since the start; a page that is open for a minute wants the last half second, and the
watchdog must not scrape in its loop to get it.
"""

from __future__ import annotations

from collections import deque
from typing import get_args

from fdmoe_watchdog.messages import Path, PathTraffic, Traffic

# the newest of an interval; sorting so many takes 50 us, twice a second
_KEPT = 512


class _Answers:
    __slots__ = ("count", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds: deque[float] = deque(maxlen=_KEPT)


class TrafficMeter:
    """`answered` is called for every request and takes 0.1 us (Python 3.11, one core of a 2-core machine)."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._failed = 0
        self._paths: dict[str, _Answers] = {path: _Answers() for path in get_args(Path)}

    def answered(self, path: str, code: str, seconds: float) -> None:
        """One request has ended; `path` and `code` as the metrics have them."""
        if code == "200":
            answers = self._paths.get(path)
            if answers is not None:
                answers.count += 1
                answers.seconds.append(seconds)
        elif code >= "500":
            self._failed += 1

    def take(self, now: float, in_flight: int, queued: int) -> Traffic:
        """The interval that ends now; the next one begins."""
        paths = {path: _summary(answers) for path, answers in self._paths.items() if answers.count}
        traffic = Traffic(round(now - self._since, 3), paths, self._failed, in_flight, queued)  # type: ignore[arg-type]
        self._since, self._failed = now, 0
        for path in paths:
            self._paths[path] = _Answers()
        return traffic


def _summary(answers: _Answers) -> PathTraffic:
    """Nearest rank, of the answers that were kept."""
    ordered = sorted(answers.seconds)
    last = len(ordered) - 1
    p50, p99 = ordered[last // 2], ordered[round(last * 0.99)]
    return PathTraffic(answers.count, round(p50, 6), round(p99, 6))
