"""The last two minutes in half seconds: the gateway's traffic, and each device's progress beside its utilisation.

A page that is opened after an alert must show what was before it, so the watchdog keeps these few numbers itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec

from fdmoe_watchdog.gpu_view import GpuView
from fdmoe_watchdog.messages import Path, PathTraffic, Traffic
from fdmoe_watchdog.pair import Pair

KEPT = 240
# a gateway that reports later than this leaves a gap
_SILENT_S = 1.0


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """What one device finished a second: batches on any path, work items on the fused one by the kernel's own count.
    `utilization` is of its busiest GPU, None where none is read. `outstanding`: a launch has begun and not ended."""

    batches_per_s: float
    items_per_s: float
    utilization: float | None
    outstanding: bool


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """`at`: Unix time. `traffic`: None if the gateway has not reported. `devices` in the tree's order."""

    at: float
    traffic: Traffic | None
    devices: tuple[Progress, ...]


class History:
    """Told of the tree by the loop, as often as it makes a view; takes a sample as often as the gateway reports."""

    def __init__(self, now: float) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._taken = 0
        self._at = now
        self._done: dict[tuple[str, int], tuple[int, int]] = {}

    @property
    def samples(self) -> tuple[Sample, ...]:
        return tuple(self._samples)

    @property
    def first(self) -> int:
        """The number of the oldest sample that is kept, counted from 0 since the start."""
        return self._taken - len(self._samples)

    def tend(
        self, now: float, wall: float, reports: Sequence[Traffic], pairs: Iterable[Pair], gpus: Iterable[GpuView]
    ) -> None:
        """`now` by the loop's clock, `wall` Unix time, `reports` the gateway's since the last call."""
        elapsed = now - self._at
        if elapsed <= 0 or (not reports and elapsed < _SILENT_S):
            return
        busy = {view.device: _utilization(view) for view in gpus}
        done: dict[tuple[str, int], tuple[int, int]] = {}
        devices = tuple(self._progress(pair, busy.get(pair.device), elapsed, done) for pair in pairs)
        self._samples.append(Sample(round(wall, 2), _merged(reports) if reports else None, devices))
        self._taken += 1
        self._at, self._done = now, done

    def _progress(
        self, pair: Pair, busy: float | None, elapsed: float, done: dict[tuple[str, int], tuple[int, int]]
    ) -> Progress:
        batches = items = 0
        outstanding = False
        for process in pair.processes.values():
            page = process.tracker.last
            if page is None:
                continue
            key, now = (process.name, process.generation), (page.fused_batches + page.baseline_batches, sum(page.items))
            before = self._done.get(key, (0, 0))
            batches += max(now[0] - before[0], 0)
            items += max(now[1] - before[1], 0)
            outstanding |= page.outstanding
            done[key] = now
        return Progress(round(batches / elapsed, 1), round(items / elapsed, 1), busy, outstanding)


def busy_without_progress(samples: Sequence[Sample], device: int) -> bool:
    """Whether the device reads as busy, has a launch that does not end, and has finished nothing for two seconds: what
    a stalled kernel looks like to those who watch utilisation alone."""
    recent = [sample.devices[device] for sample in samples[-4:]]
    return len(recent) == 4 and all(
        (one.utilization or 0.0) >= 0.9 and one.outstanding and one.batches_per_s == one.items_per_s == 0
        for one in recent
    )


def _utilization(view: GpuView) -> float | None:
    return max((gpu.utilization for gpu in view.gpus if gpu.utilization is not None), default=None)


def _merged(reports: Sequence[Traffic]) -> Traffic:
    """Several reports that wait when the watchdog comes back are one: sums, the worst of the times, the last state."""
    last = reports[-1]
    if len(reports) == 1:
        return last
    paths: dict[Path, PathTraffic] = {}
    for path, traffic in ((path, traffic) for report in reports for path, traffic in report.paths.items()):
        known = paths.get(path, PathTraffic(0, 0.0, 0.0))
        paths[path] = PathTraffic(
            known.answered + traffic.answered, max(known.p50_s, traffic.p50_s), max(known.p99_s, traffic.p99_s)
        )
    return Traffic(
        round(sum(report.seconds for report in reports), 3), paths, sum(report.failed for report in reports),
        last.in_flight, last.queued,
    )  # fmt: skip
