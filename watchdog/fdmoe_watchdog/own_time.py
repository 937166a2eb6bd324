"""The watchdog's own time: somebody's silence counts only while it was there to listen."""

from __future__ import annotations

# A turn that comes later than this many poll intervals says more of the watchdog than of the others: only so much of
# the time counts as silence.
COUNTED_POLLS = 5


class OwnTime:
    """Is told of every turn. `now_s` is its clock, in which a long gap between two turns counts as a short one."""

    def __init__(self, poll_interval_s: float, now: float) -> None:
        self.now_s = 0.0
        self._counted_s = poll_interval_s * COUNTED_POLLS
        self._turned_at = now

    def turn(self, now: float) -> float:
        """How much of the time since the last turn counts. `now` is of the caller's clock, in seconds."""
        elapsed_s, self._turned_at = min(now - self._turned_at, self._counted_s), now
        self.now_s += elapsed_s
        return elapsed_s
