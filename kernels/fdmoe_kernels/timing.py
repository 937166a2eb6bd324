"""Timing on a CUDA device by the rules of our tables: L2 flushed before each run, variants interleaved, medians."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping

import torch

_FLUSH_BYTES = 256 * 1024 * 1024  # several times the 60 MB of L2


def median_latency_us(variants: Mapping[str, Callable[[], object]], *, repetitions: int) -> dict[str, float]:
    """Median device time of each variant in microseconds: `repetitions` rounds, each variant once a round.

    Each round has its own order: what ran before leaves the host's caches and the device's queue as it likes.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in variants}
    for run in variants.values():
        run()
        run()
    torch.cuda.synchronize()
    order = list(variants.items())
    shuffle = random.Random(0).shuffle
    for _ in range(repetitions):
        shuffle(order)
        for name, run in order:
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            events[name].append((start, end))
    torch.cuda.synchronize()
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) * 1e3 for name, pairs in events.items()}


def captured(run: Callable[[], object]) -> Callable[[], None]:
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


def device_operations(run: Callable[[], object]) -> int:
    """GPU operations (kernels, copies, memsets) of one call, counted by the profiler."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.profiler.DeviceType.CUDA for event in profile.events())
