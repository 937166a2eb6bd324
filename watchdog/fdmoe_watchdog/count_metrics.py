"""The families of the watchdog's metrics that workers count: layer times, tokens of the experts, bytes moved.

The series of single experts are layers x experts many: they are written as text by themselves (`expert_lines`), which
takes a fiftieth of the client library's time for each, and can be switched off (watchdog.expert_series).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from fdmoe_watchdog.counts import BOUNDS, PATHS, TOKEN_BUCKETS
from fdmoe_watchdog.ledger import Ledger

EXPERT_TOKENS = "fdmoe_expert_tokens"
_EXPERT_TOKENS_HELP = "Tokens that each routed expert has computed on the fused path, by the kernel's own count."
_BOUNDS = tuple(str(bound) for bound in (*BOUNDS, "+Inf"))


class CountCollector(Collector):
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterable[HistogramMetricFamily | CounterMetricFamily | GaugeMetricFamily]:
        counts = self._ledger.counts(time.monotonic())
        durations = HistogramMetricFamily(
            "fdmoe_layer_duration_seconds",
            "Time of one layer on one batch, from the launch until its result was there, by path and token bucket.",
            labels=["path", "bucket"],
        )
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
            for path in PATHS:
                for bucket in TOKEN_BUCKETS:
                    launches, seconds = counts.launches(path, bucket)
                    if any(launches):
                        cumulated = [float(count) for count in accumulate(launches)]
                        durations.add_metric([path, str(bucket)], list(zip(_BOUNDS, cumulated, strict=True)), seconds)
            moved.add_metric(["local"], float(counts.bytes_moved))
            for index, layer in enumerate(self._ledger.layers):
                ratio = self._ledger.imbalance(index)
                if ratio is not None:
                    imbalance.add_metric([layer], ratio)
        yield from (durations, moved, imbalance)


class ExpertLines:
    """The per-expert series in the text format, which is the same in OpenMetrics but for the family's name: of the sum
    that the collector has asked for in the same scrape."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._layers: tuple[str, ...] = ()
        self._starts: Sequence[str] = ()

    def text(self, open_metrics: bool) -> str:
        family = EXPERT_TOKENS if open_metrics else f"{EXPERT_TOKENS}_total"
        lines = [f"# HELP {family} {_EXPERT_TOKENS_HELP}\n# TYPE {family} counter\n"]
        counts = self._ledger.latest
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
