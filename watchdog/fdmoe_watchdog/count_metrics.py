"""The families of the watchdog's metrics that workers count: layer times, tokens of the experts, bytes moved.

The layer times and the single experts are many series: they are written as text by themselves (`CountLines`), which
takes a tenth to a fiftieth of the client library's time for each. Those of the experts are layers x experts and can be
switched off (watchdog.expert_series).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fdmoe_watchdog.counts import BOUNDS, PATHS, TOKEN_BUCKETS, Counts
from fdmoe_watchdog.ledger import Ledger

DURATION = "fdmoe_layer_duration_seconds"
EXPERT_TOKENS = "fdmoe_expert_tokens"
_DURATION_HELP = "Time of one layer on one batch, from the launch until its result was there, by path and token bucket."
_EXPERT_TOKENS_HELP = "Tokens that each routed expert has computed on the fused path, by the kernel's own count."
_BOUNDS = tuple(str(bound) for bound in (*BOUNDS, "+Inf"))
# of each path and token bucket: how the lines of its bounds begin, then count and sum
_DURATION_STARTS = {
    (path, bucket): (
        *(f'{DURATION}_bucket{{bucket="{bucket}",le="{bound}",path="{path}"}} ' for bound in _BOUNDS),
        f'{DURATION}_count{{bucket="{bucket}",path="{path}"}} ',
        f'{DURATION}_sum{{bucket="{bucket}",path="{path}"}} ',
    )
    for path in PATHS
    for bucket in TOKEN_BUCKETS
}


class CountCollector(Collector):
    """The families with few series. Each collection adds up what the workers have counted."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        counts = self._ledger.counts(time.monotonic())
        moved = CounterMetricFamily(
            "fdmoe_comm_bytes",
            "Bytes moved by fused launches. local: between the SMs and the GPU's own memory.",
            labels=["peer"],
        )
        imbalance = GaugeMetricFamily(
            "fdmoe_expert_imbalance_ratio",
            "Tokens of a layer's busiest expert over the mean of its experts, in the last minute.",
            labels=["layer"],
        )
        if counts is not None:
            moved.add_metric(["local"], float(counts.bytes_moved))
            for layer, ratio in self._ledger.imbalances().items():
                imbalance.add_metric([layer], ratio)
        yield from (moved, imbalance)


class CountLines:
    """The families with many series in the text format, which is the same in OpenMetrics but for a counter's name: of
    the sum that the collector has asked for in the same scrape. `experts`: also those of single experts."""

    def __init__(self, ledger: Ledger, *, experts: bool = True) -> None:
        self._ledger = ledger
        self._experts = experts
        self._layers: tuple[str, ...] = ()
        self._starts: Sequence[str] = ()

    def text(self, open_metrics: bool) -> str:
        counts = self._ledger.latest
        lines = [_head(DURATION, _DURATION_HELP, "histogram")]
        if counts is not None:
            lines += _durations(counts)
        if self._experts:
            lines.append(_head(EXPERT_TOKENS + ("" if open_metrics else "_total"), _EXPERT_TOKENS_HELP, "counter"))
            if counts is not None:
                starts = self._label_sets(len(counts.tokens))
                lines += [f"{start}{tokens}.0\n" for start, tokens in zip(starts, counts.tokens, strict=True)]
        return "".join(lines)

    def _label_sets(self, series: int) -> Sequence[str]:
        layers = self._ledger.layers
        if layers != self._layers:
            experts = series // len(layers)
            # a layer's name is of letters, digits, '.', '_', '-' and '/': nothing in it needs an escape
            self._starts = [
                f'{EXPERT_TOKENS}_total{{expert="{expert}",layer="{layer}"}} '
                for layer in layers
                for expert in range(experts)
            ]
            self._layers = layers
        return self._starts


def _head(family: str, text: str, kind: str) -> str:
    return f"# HELP {family} {text}\n# TYPE {family} {kind}\n"


def _durations(counts: Counts) -> Iterable[str]:
    """Of the paths and token buckets that have run."""
    for (path, bucket), starts in _DURATION_STARTS.items():
        launches, seconds = counts.launches(path, bucket)
        if any(launches):
            cumulated = list(accumulate(launches))
            *bounds, count, total = starts
            yield from (f"{start}{within}.0\n" for start, within in zip(bounds, cumulated, strict=True))
            yield f"{count}{cumulated[-1]}.0\n"
            yield f"{total}{seconds}\n"
