"""Traces as a collector gets them, over real OTLP: what is in a request's, and that no collector can hold one up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from otlp_collector import Collector, Span, attributes, collecting, failed
from structlog.testing import capture_logs

from fdmoe_watchdog.messages import Fence

PATH = "/v2/models/demo/layers.0/infer"
BODY = json.dumps({"inputs": [{"name": "hidden_states", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}]})
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
ROUTE = "/v2/models/{layer}/infer"
SERVER = f"POST {ROUTE}"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's own pause before it exports is five seconds."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def whole(requests: int) -> Callable[[list[Span]], bool]:
    """So many requests' spans have come, and with them what was in them: they end last."""
    return lambda spans: len(named(spans, SERVER)) >= requests


def test_a_request_its_batch_and_the_workers_part(running_tree, collector) -> None:
    with running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        headers = {"X-Request-Id": "a-7", "traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "shop=7"}
        assert tree.request("POST", PATH, BODY, headers)[0] == 200
        spans = collector.wait_for(whole(1))
    assert [span.name for span in sorted(spans, key=lambda span: span.start_time_unix_nano)] == [
        SERVER, "batch", "compute",
    ]  # fmt: skip
    request, batch, compute = (named(spans, name)[0] for name in (SERVER, "batch", "compute"))
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    assert (request.parent_span_id.hex(), request.kind, request.trace_state) == (
        PARENT,
        Span.SPAN_KIND_SERVER,
        "shop=7",
    )
    assert (batch.parent_span_id, compute.parent_span_id) == (request.span_id, batch.span_id)
    assert [link.span_id for link in batch.links] == [request.span_id]
    assert [link.span_id for link in request.links] == [batch.span_id]
    assert not any(failed(span) for span in spans)
    found = attributes(request.attributes)
    port = found.pop("server.port")
    assert (port, found) == (tree.port, {
        "http.request.method": "POST", "http.route": "/v2/models/{layer}/infer", "http.response.status_code": 200,
        "url.scheme": "http", "url.path": PATH, "network.protocol.version": "1.1", "server.address": "127.0.0.1",
        "client.address": "127.0.0.1", "fdmoe.request_id": "a-7", "fdmoe.layer": "demo/layers.0",
        "fdmoe.path": "fused", "fdmoe.tokens": 1,
    })  # fmt: skip
    assert attributes(batch.attributes) == {
        "fdmoe.worker": "a", "fdmoe.generation": 1, "fdmoe.batch": 1, "fdmoe.layer": "demo/layers.0",
        "fdmoe.tokens": 1, "fdmoe.requests": 1, "fdmoe.replayed": 0, "fdmoe.path": "fused",
    }  # fmt: skip
    assert attributes(compute.attributes) == {"fdmoe.worker": "a", "fdmoe.generation": 1, "fdmoe.path": "fused"}
    # the worker of this test says that it took 1000 ns
    assert compute.end_time_unix_nano - compute.start_time_unix_nano == 1000
    assert compute.end_time_unix_nano == batch.end_time_unix_nano <= request.end_time_unix_nano
    assert collector.requests[0][0] == "/v1/traces"
    assert collector.resources[0]["service.name"] == "fdmoe-gateway"
    assert collector.resources[0]["service.version"] == "1.2.3"


def test_a_stalls_trace_shows_the_fence_and_the_replay(running_tree, collector) -> None:
    with running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        stalled, standby = tree.worker("a", 1), tree.worker("b", 1, automatic=True, path="baseline")
        tree.route(stalled)
        later = tree.request_later("POST", PATH, BODY, {"X-Request-Id": "carried"})
        stalled.next_batch()
        tree.control.send(Fence("a", 1, "stall"))
        tree.route(standby)
        assert later.result()[0] == 200
        spans = collector.wait_for(whole(1))
    (request,) = named(spans, SERVER)
    assert {span.trace_id for span in spans} == {request.trace_id}
    lost, answered = sorted(named(spans, "batch"), key=lambda span: span.start_time_unix_nano)
    assert (failed(lost), lost.status.message) == (True, "fenced: stall")
    assert not failed(answered)
    assert not failed(request)
    assert attributes(lost.attributes)["error.type"] == "stall"
    assert attributes(answered.attributes)["fdmoe.replayed"] == 1
    hung, computed = sorted(named(spans, "compute"), key=lambda span: span.start_time_unix_nano)
    assert (hung.parent_span_id, computed.parent_span_id) == (lost.span_id, answered.span_id)
    assert (hung.start_time_unix_nano, hung.end_time_unix_nano) == (lost.start_time_unix_nano, lost.end_time_unix_nano)
    assert (failed(hung), failed(computed)) == (True, False)
    assert [(event.name, attributes(event.attributes)) for event in request.events] == [
        ("fence", {"fdmoe.worker": "a", "fdmoe.generation": 1, "fdmoe.cause": "stall"}),
        ("replay", {"fdmoe.worker": "b", "fdmoe.generation": 1}),
    ]
    assert [link.span_id for link in request.links] == [lost.span_id, answered.span_id]


def test_a_batch_has_links_to_all_its_requests(running_tree, collector) -> None:
    with running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        worker = tree.worker("a", 1)
        tree.route(worker)
        first = tree.request_later("POST", PATH, BODY, {})
        batch = worker.next_batch()
        unrecorded = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        others = [tree.request_later("POST", PATH, BODY, headers) for headers in ({}, unrecorded, {})]
        tree.wait_for_queue(3)
        worker.answer(batch)
        worker.answer(worker.next_batch())
        assert [later.result()[0] for later in (first, *others)] == [200] * 4
        spans = collector.wait_for(whole(3))
    requests = {span.span_id: span for span in named(spans, SERVER)}
    assert len(requests) == 3
    (both,) = [span for span in named(spans, "batch") if attributes(span.attributes)["fdmoe.requests"] == 3]
    linked = [link.span_id for link in both.links]
    assert len(linked) == 2, "who is not recorded has no span"
    assert both.parent_span_id == linked[0]
    assert both.trace_id == requests[linked[0]].trace_id
    for span_id in linked:
        assert [link.span_id for link in requests[span_id].links] == [both.span_id]


def test_errors_are_a_spans_status(running_tree, collector) -> None:
    with running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        worker = tree.worker("a", 1, automatic=True)
        worker.error = "the device is on fire"
        tree.route(worker)
        assert tree.request("POST", PATH, BODY, {})[0] == 500
        assert tree.request("POST", PATH, "no JSON", {})[0] == 400
        assert tree.request("PROPFIND", PATH, "", {})[0] == 405
        spans = collector.wait_for(lambda spans: whole(2)(spans) and bool(named(spans, f"HTTP {ROUTE}")))
    ours, theirs = sorted(named(spans, SERVER), key=lambda span: span.start_time_unix_nano)
    assert (failed(ours), attributes(ours.attributes)["error.type"]) == (True, "500")
    assert (failed(theirs), attributes(theirs.attributes)["http.response.status_code"]) == (False, 400)
    assert "error.type" not in attributes(theirs.attributes)
    (odd,) = named(spans, f"HTTP {ROUTE}")
    assert attributes(odd.attributes)["http.request.method"] == "_OTHER"
    for name in ("batch", "compute"):
        (span,) = named(spans, name)
        assert (failed(span), span.status.message) == (True, "the device is on fire")


def test_a_trace_that_begins_here_is_the_exemplars(running_tree, collector) -> None:
    with running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        tree.request("POST", PATH, BODY, {"X-Request-Id": "a-7"})
        (request,) = named(collector.wait_for(whole(1)), SERVER)
        text = tree.request("GET", "/metrics", None, {"Accept": "application/openmetrics-text"})[2].decode()
    assert f'{{request_id="a-7",trace_id="{request.trace_id.hex()}"}}' in text


def test_who_is_recorded(running_tree, collector) -> None:
    """With a ratio of 0 nobody begins a trace, and who is part of one that is recorded still is."""
    with running_tree(traces_url=f"{collector.endpoint}/v1/traces", traces_sample_ratio=0.0) as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        for headers in ({}, {"traceparent": f"00-{TRACE}-{PARENT}-00"}, {"traceparent": f"00-{TRACE}-{PARENT}-01"}):
            assert tree.request("POST", PATH, BODY, headers)[0] == 200
        collector.wait_for(whole(1))
    assert [span.parent_span_id.hex() for span in named(collector.spans, SERVER)] == [PARENT]


def test_the_environment_says_what_it_says_everywhere(running_tree, collector, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "moe")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.pod.name=pod-1")
    with running_tree(traces_url=f"{collector.endpoint}/own/path") as tree:
        tree.request("POST", PATH, BODY, {})
        collector.wait_for(whole(1))
    path, headers = collector.requests[0]
    assert (path, headers["authorization"]) == ("/own/path", "Bearer x")
    assert collector.resources[0]["service.name"] == "moe"
    assert collector.resources[0]["k8s.pod.name"] == "pod-1"


def test_a_collector_that_hangs_holds_up_nobody(running_tree, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    with collecting("hang") as collector, running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        assert tree.request("POST", PATH, BODY, {})[0] == 200
        collector.wait_for_requests(1)
        # more spans than the queue has room for, while the thread that exports waits for an hour
        assert {tree.request("POST", PATH, BODY, {})[0] for _ in range(700)} == {200}
        assert len(collector.requests) == 1
    # and it ends within the fixture's deadline, although that thread still waits


def test_an_outage_is_told_once(running_tree, collector) -> None:
    collector.mode = "refuse"
    with capture_logs() as logs, running_tree(traces_url=f"{collector.endpoint}/v1/traces") as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        for count in (1, 2, 3):
            tree.request("POST", PATH, BODY, {})
            collector.wait_for_requests(count)
        collector.mode = "take"
        tree.request("POST", PATH, BODY, {})
        collector.wait_for(whole(1))
    told = [entry for entry in logs if entry["event"].startswith("traces_")]
    assert [(entry["event"], entry["log_level"]) for entry in told] == [
        ("traces_lost", "warning"),
        ("traces_again", "info"),
    ]
    assert told[0]["url"] == f"{collector.endpoint}/v1/traces"
    assert "400" in told[0]["reason"]
    assert told[1]["lost"] >= 3


def test_without_an_endpoint_nothing_of_opentelemetry_is_imported() -> None:
    script = (
        "import sys, fdmoe_ops.gateway.__main__, fdmoe_ops.gateway.server\n"
        "sys.exit(any(name.split('.')[0] in ('opentelemetry', 'google', 'requests') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], env={"PYTHONPATH": ":".join(sys.path[1:])}, timeout=60, check=False
    )
    assert done.returncode == 0
