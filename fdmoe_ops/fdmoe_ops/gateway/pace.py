"""How fast workers take what waits, and so when a refused client may come again. No clock, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass

# the last eight batches or so are most of it: a worker's pace changes with its path
_KEPT = 7 / 8


@dataclass(slots=True)
class Pace:
    """Tokens and seconds of the batches that were answered, each batch counting 7/8 of the one after it.

    A worker has one batch at a time, so that while requests wait its seconds follow one another without a gap.
    """

    _tokens: float = 0.0
    _seconds: float = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A batch was answered, so long after it was sent."""
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + seconds

    def seconds_for(self, tokens: int) -> float:
        """How long so many tokens take one worker at this pace; 0 before the first batch."""
        return tokens * self._seconds / self._tokens if self._tokens else 0.0


def retry_after_s(queue_s: float, least_s: int, timeout_s: float) -> int:
    """Whole seconds after which what waits now (`queue_s` at the workers' pace) is gone: nobody waits for longer than
    `timeout_s`, whatever the pace."""
    return max(least_s, math.ceil(min(queue_s, timeout_s)))
