"""From pages to observations: how long a worker has shown no progress, and what counts as too long.

The tracker is given snapshots and the time; it reads no clock and no file itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from fdmoe_watchdog.buckets import token_bucket
from fdmoe_watchdog.own_time import COUNTED_POLLS
from fdmoe_watchdog.page import Exit, Snapshot, Stage
from fdmoe_watchdog.settings import RecoverySettings
from fdmoe_watchdog.slot_clock import SlotClock

# silences are remembered for so long at least, and twice as long at most
_MEMORY_S = 60.0


@dataclass
class _Worst:
    """The largest of the last one to two periods in which anything came; one hiccup does not count for ever."""

    began_s: float
    before: float = 0.0
    since: float = 0.0

    def add(self, value: float, now_s: float) -> None:
        if now_s - self.began_s >= _MEMORY_S:
            self.before, self.since, self.began_s = self.since, 0.0, now_s
        self.since = max(self.since, value)

    @property
    def value(self) -> float:
        return max(self.before, self.since)


@dataclass
class StallTimes:
    """The longest silence seen lately in launches that ended well, per layer and token bucket."""

    settings: RecoverySettings
    _worst: dict[tuple[int, int], _Worst] = field(default_factory=dict, init=False)

    def learn(self, layer: int, tokens: int, silence_s: float, now_s: float) -> None:
        """`now_s` is of one clock for all calls."""
        self._worst.setdefault((layer, token_bucket(tokens)), _Worst(now_s)).add(silence_s, now_s)

    def worst_s(self, layer: int, tokens: int) -> float | None:
        """None as long as no launch of that layer and size has ended."""
        worst = self._worst.get((layer, token_bucket(tokens)))
        return None if worst is None else worst.value

    def stall_after_s(self, layer: int, tokens: int) -> float:
        settings, worst = self.settings, self.worst_s(layer, tokens)
        wanted = settings.stall_first_s if worst is None else worst * settings.stall_factor
        return min(max(wanted, settings.stall_floor_s), settings.stall_ceiling_s)


class Tracker:
    """Follows one generation of one worker.

    quiet_s      how long the slowest CTA of the outstanding launch has shown no beat
    untouched_s  how long batches have waited without any sign of work
    host_still_s how long batches have waited while neither path ran and the host thread showed no beat either
    stages_s     how long the worker was in each stage
    beat_at      when any beat was last seen, on the caller's clock; 0 if none was
    """

    def __init__(self, stall_times: StallTimes, poll_interval_s: float) -> None:
        self._stall_times = stall_times
        self._counted_s = poll_interval_s * COUNTED_POLLS
        self._last: Snapshot | None = None
        self._last_at = 0.0
        self._clock_s = 0.0
        self._begun_s = 0.0
        self._worst_gap_s = 0.0
        self.slots = SlotClock()
        self.quiet_s = 0.0
        self.untouched_s = self.host_still_s = 0.0
        self.stages_s: dict[Stage, float] = dict.fromkeys(Stage, 0.0)
        self.beat_at = 0.0

    @property
    def last(self) -> Snapshot | None:
        return self._last

    @property
    def clock_s(self) -> float:
        """The clock of `slots`: the watchdog's own time, in which long gaps between readings count as short ones."""
        return self._clock_s

    @property
    def ages_s(self) -> tuple[float, ...]:
        """How long each CTA's line has stayed as it is."""
        return self.slots.ages_s(self._clock_s)

    @property
    def learned_gap_s(self) -> float | None:
        """The longest silence that was seen lately in good launches of the present one's layer and size."""
        page = self._last
        return None if page is None else self._stall_times.worst_s(page.layer, page.tokens)

    def items_since(self, before: Snapshot | None) -> Iterator[int]:
        """Work items finished since `before`, per phase (route, up, down, combine)."""
        now = self._last.items if self._last else (0, 0, 0, 0)
        then = before.items if before else (0, 0, 0, 0)
        return (max(new - old, 0) for new, old in zip(now, then, strict=True))

    def read(self, snapshot: Snapshot, now: float) -> None:
        last, elapsed = self._last, min(now - self._last_at, self._counted_s)
        self._last, self._last_at = snapshot, now
        if last is None:
            self.slots.read(snapshot.slots, self._clock_s)
            return
        self._clock_s += elapsed
        if self.slots.read(snapshot.slots, self._clock_s):
            self.beat_at = now
        self._follow_launch(last, snapshot, elapsed)
        self._follow_batches(last, snapshot, elapsed)
        self.stages_s[snapshot.stage] += elapsed

    @property
    def trial_s(self) -> float:
        """How long the worker has been at its trial kernel; 0 when it is not."""
        at_it = self._last is not None and self._last.stage is Stage.TRIAL
        return self.stages_s[Stage.TRIAL] if at_it else 0.0

    def serving_launch(self) -> int:
        """The outstanding launch that serves; a launch of the warm-up compiles, and has the start-up deadline."""
        page = self._last
        return page.begun if page is not None and page.outstanding and page.stage is Stage.SERVING else 0

    def stall_after_s(self) -> float:
        """The learned time once the device has shown a beat. Before that the host may not even have launched: a worker
        that the scheduler holds back for a while is no stalled kernel."""
        page = self._last
        if page is None:
            return math.inf
        stall_after_s = self._stall_times.stall_after_s(page.layer, page.tokens)
        if self.quiet_s >= stall_after_s and self.slots.still_since(page.begun) is None:
            return max(stall_after_s, self._stall_times.settings.launch_deadline_s)
        return stall_after_s

    def _follow_launch(self, last: Snapshot, snapshot: Snapshot, elapsed: float) -> None:
        ended = snapshot.ended > last.ended
        # the exit may be of a later launch: of one that was told to end, nobody knows then how it ended
        done = snapshot.exit is Exit.DONE and (snapshot.ended == last.begun or snapshot.abort != last.begun)
        if ended and last.outstanding and last.stage is Stage.SERVING and done:
            silence_s = max(self._worst_gap_s, self.quiet_s + elapsed)
            self._stall_times.learn(last.layer, last.tokens, silence_s, self._last_at)
        serving = snapshot.outstanding and snapshot.stage is Stage.SERVING
        if ended or snapshot.begun != last.begun or not serving:
            self.quiet_s = self._worst_gap_s = 0.0
            self._begun_s = self._clock_s
            return
        self._worst_gap_s = max(self._worst_gap_s, self.quiet_s + elapsed)
        # slots may hold beats from before the launch was seen to begin
        still_since = self.slots.still_since(snapshot.begun)
        self.quiet_s = self._clock_s - max(self._begun_s, still_since or 0.0)

    def _follow_batches(self, last: Snapshot, snapshot: Snapshot, elapsed: float) -> None:
        # what an idle worker was silent before is no silence about the batch that has just come
        came = snapshot.waiting and not last.waiting
        worked = came or _work_words(snapshot) != _work_words(last)
        beat = worked or snapshot.host_beats != last.host_beats
        # an idle worker shows that it lives by its loop's beats; one that has a batch must work on it
        touched = worked if snapshot.waiting else beat
        self.untouched_s = 0.0 if touched else self.untouched_s + elapsed
        held = snapshot.waiting and not snapshot.path_runs
        self.host_still_s = self.host_still_s + elapsed if held and not beat else 0.0


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
