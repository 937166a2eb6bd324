"""From pages to observations: how long a worker has shown no progress, and what counts as too long.

The tracker is given snapshots and the time; it reads no clock and no file itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fdmoe_watchdog.page import LINE_WORDS, Exit, SlotWord, Snapshot, Stage
from fdmoe_watchdog.policy import Seen
from fdmoe_watchdog.settings import RecoverySettings

# A reading that comes later than this many poll intervals says more of the watchdog than of the worker: only so much
# of the time counts as silence.
_COUNTED_POLLS = 5


def token_bucket(tokens: int) -> int:
    """The power of two at or above `tokens`: stall times are learned per layer and bucket."""
    return 1 << max(tokens - 1, 0).bit_length()


@dataclass
class StallTimes:
    """The longest silence seen in launches that ended well, per layer and token bucket."""

    settings: RecoverySettings
    worst_s: dict[tuple[int, int], float] = field(default_factory=dict)

    def learn(self, layer: int, tokens: int, silence_s: float) -> None:
        key = (layer, token_bucket(tokens))
        self.worst_s[key] = max(self.worst_s.get(key, 0.0), silence_s)

    def stall_after_s(self, layer: int, tokens: int) -> float:
        worst = self.worst_s.get((layer, token_bucket(tokens)), 0.0)
        return min(max(worst * self.settings.stall_factor, self.settings.stall_floor_s), self.settings.stall_ceiling_s)


class Tracker:
    """Follows one generation of one worker."""

    def __init__(self, stall_times: StallTimes, poll_interval_s: float) -> None:
        self._stall_times = stall_times
        self._counted_s = poll_interval_s * _COUNTED_POLLS
        self._last: Snapshot | None = None
        self._last_at = 0.0
        self._worst_gap_s = 0.0
        self.quiet_s = 0.0
        self.untouched_s = 0.0
        self.beat_at = 0.0

    @property
    def last(self) -> Snapshot | None:
        return self._last

    def items_since(self, before: Snapshot | None) -> Iterator[int]:
        """Work items finished since `before`, per phase (route, up, down, combine)."""
        now = self._last.items if self._last else (0, 0, 0, 0)
        then = before.items if before else (0, 0, 0, 0)
        return (max(new - old, 0) for new, old in zip(now, then, strict=True))

    def read(self, snapshot: Snapshot, now: float) -> None:
        last, elapsed = self._last, min(now - self._last_at, self._counted_s)
        self._last, self._last_at = snapshot, now
        if last is None:
            return
        if snapshot.slots != last.slots:
            self.beat_at = now
        self._follow_launch(last, snapshot, elapsed)
        waiting = snapshot.submitted > snapshot.answered
        # an idle worker shows that it lives by its loop's beats; one that has a batch must work on it
        words = _work_words if waiting else _life_words
        self.untouched_s = 0.0 if words(snapshot) != words(last) else self.untouched_s + elapsed

    def seen(
        self, *, alive: bool, ready: bool, shadow: tuple[bool, ...], fused: bool = True, cut_off: bool = False
    ) -> Seen:
        page = self._last
        if page is None:
            return Seen(alive=alive, ready=ready, shadow=shadow, fused=fused, cut_off=cut_off)
        # a launch of the warm-up compiles: it has the start-up deadline, not the stall time
        serving = page.outstanding and page.stage is Stage.SERVING
        return Seen(
            alive=alive,
            ready=ready,
            launch=page.begun if serving else 0,
            ended=page.ended,
            quiet_s=self.quiet_s,
            stall_after_s=self._stall_after_s(page),
            untouched_s=self.untouched_s,
            shadow=shadow,
            fused=fused,
            cut_off=cut_off,
        )

    def _stall_after_s(self, page: Snapshot) -> float:
        """The learned time once the device has shown a beat. Before that the host may not even have launched: a worker
        that the scheduler holds back for a while is no stalled kernel."""
        stall_after_s = self._stall_times.stall_after_s(page.layer, page.tokens)
        if self.quiet_s >= stall_after_s and not _shows_launch(page):
            return max(stall_after_s, self._stall_times.settings.launch_deadline_s)
        return stall_after_s

    def _follow_launch(self, last: Snapshot, snapshot: Snapshot, elapsed: float) -> None:
        ended = snapshot.ended > last.ended
        if ended and last.outstanding and last.stage is Stage.SERVING and snapshot.exit is Exit.DONE:
            self._stall_times.learn(last.layer, last.tokens, max(self._worst_gap_s, self.quiet_s + elapsed))
        serving = snapshot.outstanding and snapshot.stage is Stage.SERVING
        if ended or snapshot.begun != last.begun or not serving:
            self.quiet_s = self._worst_gap_s = 0.0
        elif snapshot.slots != last.slots:
            self._worst_gap_s = max(self._worst_gap_s, self.quiet_s + elapsed)
            self.quiet_s = 0.0
        else:
            self.quiet_s += elapsed


def _work_words(snapshot: Snapshot) -> tuple[int | bytes, ...]:
    return (
        # a launch that beats is at work, however long it takes
        snapshot.slots,
        snapshot.answered,
        snapshot.begun,
        snapshot.ended,
        snapshot.baseline_begun,
        snapshot.baseline_ended,
    )


def _life_words(snapshot: Snapshot) -> tuple[int | bytes, ...]:
    return (snapshot.host_beats, snapshot.submitted, *_work_words(snapshot))


def _shows_launch(snapshot: Snapshot) -> bool:
    """Whether any CTA has shown a beat of the outstanding launch."""
    words = memoryview(snapshot.slots).cast("Q")
    return snapshot.begun in words[SlotWord.LAUNCH :: LINE_WORDS].tolist()
