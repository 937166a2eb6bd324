"""The gateway's metrics: every family it exports is a literal here (DESIGN: metrics)."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from fdmoe_ops.gateway.called import Called
from fdmoe_ops.gateway.refusal import Reason
from fdmoe_ops.gateway.traffic import TrafficMeter

# from half of what the gateway may add at one token to the longest that a request waits
_SECONDS = (0.00015, 0.0003, 0.0006, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


# OpenMetrics: an exemplar's labels, names and values, have 128 characters at most
_ID_CHARACTERS = 128 - len("request_id")
_PLAIN = str.maketrans("", "", '"\\')
_ID_CHARACTERS_WITH_TRACE = _ID_CHARACTERS - len("trace_id") - 32


def exemplar(name: Called) -> dict[str, str]:
    """A request's names as an exemplar's labels: a longer id is cut, and its first characters still find it. Quotes and
    backslashes are left out: not all parsers know them there, and would refuse the whole scrape."""
    own_id = name.id.translate(_PLAIN)
    if name.trace_id:
        return {"request_id": own_id[:_ID_CHARACTERS_WITH_TRACE], "trace_id": name.trace_id}
    return {"request_id": own_id[:_ID_CHARACTERS]}


class Metrics:
    """Labels come from closed sets: `layer` is a served one or "", `path` a path or "none", `code` an HTTP status (499:
    the client went away first), `reason` one of Reason."""

    def __init__(self, queue_depth: Callable[[], int], arena_used_bytes: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests_in_flight = 0
        self.traffic = TrafficMeter(time.monotonic())
        self.request_duration = Histogram(
            "fdmoe_request_duration_seconds",
            "From the arrival of an inference request's headers to its answer.",
            ["layer", "path", "code"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.request_tokens = Counter(
            "fdmoe_request_tokens", "Tokens of answered requests.", ["layer", "path"], registry=registry
        )
        self.replayed_requests = Counter(
            "fdmoe_replayed_requests", "Requests sent again to another worker.", registry=registry
        )
        self.batch_tokens = Histogram(
            "fdmoe_batch_tokens", "Tokens of the batches sent to workers.", buckets=_TOKENS, registry=registry
        )
        self._refused = Counter(
            "fdmoe_refused_requests",
            "Requests turned away because of what else was going on, or because their head was no HTTP request's.",
            ["reason"],
            registry=registry,
        )
        for reason in Reason:
            self._refused.labels(reason)
        self._children: dict[tuple[str, str, str], tuple[Histogram, Counter | None]] = {}
        in_flight = Gauge("fdmoe_requests_in_flight", "Inference requests that have no answer yet.", registry=registry)
        in_flight.set_function(lambda: self.requests_in_flight)
        depth = Gauge("fdmoe_queue_depth", "Requests that wait for a place in a batch.", registry=registry)
        depth.set_function(queue_depth)
        used = Gauge("fdmoe_arena_used_bytes", "Arena memory that requests hold.", registry=registry)
        used.set_function(arena_used_bytes)

    def answered(self, layer: str, path: str, code: str, seconds: float, tokens: int, exemplar: dict[str, str]) -> None:
        """One request has ended; its bucket keeps `exemplar`, for those who scrape OpenMetrics. The children are kept,
        because looking them up costs more than moving them."""
        key = (layer, path, code)
        children = self._children.get(key)
        if children is None:
            duration = self.request_duration.labels(layer, path, code)
            # refusals have no tokens, and so no series
            counter = self.request_tokens.labels(layer, path) if code == "200" else None
            children = self._children[key] = duration, counter
        children[0].observe(seconds, exemplar)
        if children[1] is not None:
            children[1].inc(tokens)
        self.traffic.answered(path, code, seconds)

    def refused(self, reason: Reason) -> None:
        self._refused.labels(reason).inc()
