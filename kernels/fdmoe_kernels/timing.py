"""Timing on a CUDA device by the rules of our tables: L2 flushed before each run, variants interleaved, medians."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

Run = Callable[[], object]

_FLUSH_BYTES = 256 * 1024 * 1024  # several times the 60 MB of L2
# A turn of a variant: the first run is not recorded, for how far the host is ahead when it starts was the work of the
# variant before. A table of peers measured one at a time has each in its own steady state; so has this.
_RECORDED_PER_TURN = 3
FEWEST_RUNS = 10
_PAUSE_S, _WAKE_S = 1.0, 0.7


class Timer(Protocol):
    """How calls are timed and counted: by CudaTimer, and by tests without a GPU."""

    def latency_us(self, variants: Mapping[str, Run], *, runs: int, budget_s: float) -> dict[str, float]:
        """Median microseconds of each variant over at most `runs` runs that take about `budget_s` in all; what a device
        takes to wake up is not of it."""

    def captured(self, run: Run) -> Run:
        """`run` as the replay of a CUDA graph."""

    def operations(self, run: Run) -> int:
        """GPU operations (kernels, copies, memsets) of one call."""


class CudaTimer:
    """The Timer of the current CUDA device. After a pause it keeps the device busy before it measures: an H200 that had
    waited for compilers took 56 us for what took it 38 half a second later."""

    def __init__(self) -> None:
        self._ended = -math.inf

    def latency_us(self, variants: Mapping[str, Run], *, runs: int, budget_s: float) -> dict[str, float]:
        if time.monotonic() - self._ended > _PAUSE_S:
            _keep_busy(_WAKE_S)
        result = median_latency_us(variants, repetitions=runs, budget_s=budget_s)
        self._ended = time.monotonic()
        return result

    def captured(self, run: Run) -> Run:
        return captured(run)

    def operations(self, run: Run) -> int:
        return device_operations(run)


def _keep_busy(seconds: float) -> None:
    memory = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(10):
            memory.zero_()
        torch.cuda.synchronize()


def median_latency_us(variants: Mapping[str, Run], *, repetitions: int, budget_s: float = math.inf) -> dict[str, float]:
    """Median device time of each variant in microseconds, from the event before the call to the one after it: where
    the host is slower than the device, that is the host's time.

    At most `repetitions` runs of each are recorded, and no more than about `budget_s` seconds hold, but FEWEST_RUNS at
    least. Each round has its own order: what ran before leaves the host's caches as it likes.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in variants}

    def turn(run: Run) -> list[tuple[torch.cuda.Event, torch.cuda.Event]]:
        pairs = []
        for _ in range(1 + _RECORDED_PER_TURN):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            pairs.append((start, end))
        return pairs[1:]

    for run in variants.values():
        run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for run in variants.values():
        turn(run)
    torch.cuda.synchronize()
    rounds = rounds_within(time.perf_counter() - began, repetitions=repetitions, budget_s=budget_s)
    order = list(variants.items())
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name, run in order:
            events[name] += turn(run)
    torch.cuda.synchronize()
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) * 1e3 for name, pairs in events.items()}


def rounds_within(round_s: float, *, repetitions: int, budget_s: float) -> int:
    """Rounds for at most `repetitions` runs of a variant in about `budget_s` seconds, and FEWEST_RUNS at least."""
    wanted = math.ceil(repetitions / _RECORDED_PER_TURN)
    fewest = math.ceil(FEWEST_RUNS / _RECORDED_PER_TURN)
    affordable = budget_s / round_s if round_s > 0 else math.inf
    return max(fewest, int(min(wanted, affordable)))


def captured(run: Run) -> Run:
    """`run` as the replay of a CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def device_operations(run: Run) -> int:
    """GPU operations (kernels, copies, memsets) of one call, counted by the profiler."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.profiler.DeviceType.CUDA for event in profile.events())
