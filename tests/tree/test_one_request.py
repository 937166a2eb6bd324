"""One request followed by its id through a real tree: answer, log lines, flight record, exemplar and trace."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from otlp_collector import Collector, Span, attributes, collecting, failed
from typer.testing import CliRunner

from fdmoe_ops.chaos.tree import Tree, running_tree
from fdmoe_ops.cli.commands import app
from fdmoe_watchdog import flight

LAYER = "demo/layers.1"
BODY = json.dumps({"inputs": [{"name": "hidden_states", "datatype": "FP32", "shape": [1, 64], "data": [0.5] * 64}]})
TRACES = {"stall": "4bf92f3577b34da6a3ce929d0e0e4736", "endless": "5bf92f3577b34da6a3ce929d0e0e4736"}
SERVER = "POST /v2/models/{layer}/infer"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(demo: Path, collector: Collector) -> Iterator[Tree]:
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--model-layers=1", "--enable-chaos", "--log-format=json",
        "--recovery-cooldown-initial-s=0.5", "--recovery-cooldown-max-s=0.5",
        f"--traces-endpoint={collector.endpoint}", "--traces-sample-ratio=0",
    )  # fmt: skip
    with running_tree(*flags, environment={"OTEL_BSP_SCHEDULE_DELAY": "100"}) as tree:
        yield tree


def ask(tree: Tree, headers: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """The answer's headers, in small letters, and its parameters."""
    connection = http.client.HTTPConnection(tree.gateway_address, timeout=60)
    connection.request("POST", f"/v2/models/{LAYER}/infer", BODY, headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, body
    return {name.lower(): value for name, value in answer.getheaders()}, json.loads(body)["parameters"]


def lines(tree: Tree) -> list[dict[str, Any]]:
    """What the tree's processes have logged. The announcement on standard output is for people."""
    said = tree.output.read_text().splitlines()
    return [json.loads(line) for line in said if line.startswith("{")]


@pytest.mark.parametrize("fault", ["stall", "endless"])
def test_a_request_in_a_stalled_launch(traced: Tree, collector: Collector, fault: str) -> None:
    traced.wait_until("the fused path", lambda: ask(traced, {})[1]["fdmoe_path"] == "fused")
    traced.wait_until("a standby", lambda: all(w["state"] == "ready" for w in traced.status()["workers"]))
    active, records = traced.active(), len(flight.stored(traced.flight_dir))
    traced.arm(fault)
    name, trace = f"in-a-{fault}", TRACES[fault]
    headers, parameters = ask(traced, {"X-Request-Id": name, "traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    assert headers["x-request-id"] == name
    assert (parameters["fdmoe_path"], parameters["fdmoe_replayed"]) == ("baseline", fault == "endless")

    # the flight record, and what people see of it
    def recorded() -> flight.Record | None:
        paths = flight.stored(traced.flight_dir)[records:]
        record = flight.parse(flight.read(paths[0])) if paths else None
        whole = record is not None and record.in_flight is not None and record.expert_tokens
        return record if whole else None

    record = traced.wait_until("the record", recorded)
    assert (record.in_flight.count, record.in_flight.requests) == (1, (name,))
    shown = CliRunner().invoke(app, ["flight", "show", str(records + 1), "--flight-dir", str(traced.flight_dir)])
    assert f"1 in flight: {name}" in shown.stdout
    # counted by whoever has answered: the worker whose launch was aborted, or the one that took the batch over
    assert sum(record.expert_tokens.values()) == record.tokens * record.context["top_k"]

    # log lines, by process
    expected = {"stall": "aborted", "endless": "replayed_requests"}[fault]

    def said() -> set[tuple[str, str]]:
        return {(line["event"], line["process"]) for line in lines(traced) if name in line.get("requests", ())}

    traced.wait_until("the line", lambda: expected in {event for event, _ in said()})
    if fault == "stall":
        assert said() == {(expected, f"worker-{active}-g1")}
    else:
        assert said() == {("fence", "gateway"), (expected, "gateway")}

    # the exemplar
    connection = http.client.HTTPConnection(traced.gateway_address, timeout=10)
    connection.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert f'# {{request_id="{name}",trace_id="{trace}"}} ' in connection.getresponse().read().decode()
    connection.close()

    # the trace
    spans = collector.wait_for(lambda spans: any(is_of(span, trace) and span.name == SERVER for span in spans))
    spans = [span for span in spans if is_of(span, trace)]
    (request,) = (span for span in spans if span.name == SERVER)
    assert attributes(request.attributes)["fdmoe.request_id"] == name
    assert not failed(request)
    batches = sorted((span for span in spans if span.name == "batch"), key=lambda span: span.start_time_unix_nano)
    assert [failed(span) for span in batches] == ([False] if fault == "stall" else [True, False])
    assert len([span for span in spans if span.name == "compute"]) == len(batches)
    events = [event.name for event in request.events]
    assert events == ([] if fault == "stall" else ["fence", "replay"])
    if fault == "endless":
        assert batches[0].status.message == "fenced: stall"
        # the floor of the stall time without a GPU is two seconds
        assert batches[0].end_time_unix_nano - batches[0].start_time_unix_nano >= 2_000_000_000
    compute = next(span for span in spans if span.parent_span_id == batches[-1].span_id)
    assert batches[-1].start_time_unix_nano <= compute.start_time_unix_nano < compute.end_time_unix_nano


def test_every_line_on_standard_error_is_an_object(traced: Tree) -> None:
    said = traced.output.read_text()
    announced = said.index("\n{", said.index("curl"))
    before = [line for line in said[:announced].splitlines() if line.startswith("{")]
    after = said[announced:].splitlines()[1:]
    processes = {json.loads(line)["process"] for line in (*before, *after)}
    assert {"watchdog", "gateway", "worker-a-g1", "worker-b-g1", "weights-g1"} <= processes


def is_of(span: Span, trace: str) -> bool:
    return bool(span.trace_id.hex() == trace)
