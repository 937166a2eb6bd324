"""Two minutes in half seconds: the gateway's reports beside what devices finish."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import status_views

from fdmoe_watchdog.messages import PathTraffic, Traffic
from fdmoe_watchdog.status_page.history import KEPT, History, Progress, Sample, busy_without_progress

QUIET = Traffic(0.5, {}, 0, 0, 0)


def pair(fused: int, baseline: int, items: int, *, outstanding: bool = False, generation: int = 1) -> Any:
    page = SimpleNamespace(
        fused_batches=fused, baseline_batches=baseline, items=(items, 0, 0, 0), outstanding=outstanding
    )  # fmt: skip
    process = SimpleNamespace(name="a", generation=generation, tracker=SimpleNamespace(last=page))
    return SimpleNamespace(device="cuda:0", processes={"a": process})


def test_a_report_is_a_sample_with_what_each_device_finished_since_the_last() -> None:
    history = History(100.0)
    history.tend(100.5, 1.0, [QUIET], [pair(10, 0, 500)], [status_views.gpu("cuda:0", 0.5)])
    history.tend(100.55, 1.05, [], [pair(12, 0, 600)], [])
    history.tend(101.0, 1.5, [QUIET], [pair(20, 5, 500, outstanding=True)], [status_views.gpu("cuda:0", 1.0)])
    # another generation counts from 0
    history.tend(101.5, 2.0, [QUIET], [pair(3, 0, 40, generation=2)], [])
    assert history.samples == (
        Sample(1.0, QUIET, (Progress(20.0, 1000.0, 0.5, False),)),
        Sample(1.5, QUIET, (Progress(30.0, 0.0, 1.0, True),)),
        Sample(2.0, QUIET, (Progress(6.0, 80.0, None, False),)),
    )
    assert history.first == 0


def test_a_gateway_that_does_not_report_leaves_a_gap() -> None:
    history = History(100.0)
    for step in range(1, 45):
        history.tend(100.0 + step * 0.05, step * 0.05, [], [], [])
    assert [(sample.at, sample.traffic) for sample in history.samples] == [(1.0, None), (2.0, None)]


def test_reports_that_waited_for_the_watchdog_are_one() -> None:
    reports = [
        Traffic(0.5, {"fused": PathTraffic(3, 0.1, 0.2)}, 1, 9, 9),
        Traffic(0.5, {"fused": PathTraffic(4, 0.05, 0.9), "baseline": PathTraffic(1, 0.3, 0.3)}, 0, 2, 1),
    ]
    history = History(0.0)
    history.tend(1.0, 1.0, reports, [], [])
    assert history.samples[0].traffic == Traffic(
        1.0, {"fused": PathTraffic(7, 0.1, 0.9), "baseline": PathTraffic(1, 0.3, 0.3)}, 1, 2, 1
    )


def test_the_oldest_samples_go_and_the_numbers_stay() -> None:
    history = History(0.0)
    for step in range(1, KEPT + 11):
        history.tend(step / 2, step / 2, [QUIET], [], [])
    assert (len(history.samples), history.first, history.samples[0].at) == (KEPT, 10, 5.5)


def test_busy_without_progress_needs_all_three_for_two_seconds() -> None:
    def samples(**values: object) -> list[Sample]:
        stuck = {"batches_per_s": 0.0, "items_per_s": 0.0, "utilization": 1.0, "outstanding": True}
        return [status_views.sample(number, 1, **{**stuck, **values}) for number in range(4)]

    assert busy_without_progress(samples(), 0)
    assert not busy_without_progress(samples()[:3], 0)
    assert not busy_without_progress([*samples(), status_views.sample(4, 1, utilization=1.0)], 0)
    for value in ({"utilization": 0.5}, {"utilization": None}, {"outstanding": False}, {"items_per_s": 0.1}):
        assert not busy_without_progress(samples(**value), 0), value
