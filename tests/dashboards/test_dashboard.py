"""The Grafana dashboard: what it is made of, that it comes from its generator, and what its queries answer.

No Grafana takes part: Prometheus' own engine (promtool) evaluates every panel's query over a written history.
"""

from __future__ import annotations

import json
import re
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Promtool = Callable[..., subprocess.CompletedProcess[str]]

# Eleven samples, one every 15 s: what a watchdog and a gateway of one tree publish while one stall is recovered from.
HISTORY = {
    'fdmoe_path_active{instance="n:9400", device="cuda:0", path="fused"}': "1x5 0x5",
    'fdmoe_path_active{instance="n:9400", device="cuda:0", path="shadow"}': "0x9 1",
    'fdmoe_path_active{instance="n:9400", device="cuda:0", path="baseline"}': "0x5 1x3 0",
    'fdmoe_path_active{instance="n:9400", device="cuda:1", path="fused"}': "1x10",
    'fdmoe_path_active{instance="m:9400", device="cuda:0", path="baseline"}': "1x10",
    'fdmoe_path_active{instance="o:9400", device="cuda:0", path="fused"}': "0x10",
    'fdmoe_request_duration_seconds_count{layer="m/layers.0", path="fused", code="200"}': "0+30x10",
    'fdmoe_request_duration_seconds_count{layer="m/layers.1", path="fused", code="200"}': "0+15x10",
    'fdmoe_request_duration_seconds_count{layer="m/layers.0", path="baseline", code="503"}': "0+15x10",
    'fdmoe_request_duration_seconds_bucket{layer="m/layers.0", path="fused", code="200", le="0.001"}': "0+1350x10",
    'fdmoe_request_duration_seconds_bucket{layer="m/layers.0", path="fused", code="200", le="0.002"}': "0+1470x10",
    'fdmoe_request_duration_seconds_bucket{layer="m/layers.0", path="fused", code="200", le="0.004"}': "0+1500x10",
    'fdmoe_request_duration_seconds_bucket{layer="m/layers.0", path="fused", code="200", le="+Inf"}': "0+1500x10",
    'fdmoe_requests_in_flight{instance="n:8080"}': "3x10",
    'fdmoe_queue_depth{instance="n:8080"}': "7x10",
    'fdmoe_arena_used_bytes{instance="n:8080"}': "4096x10",
    'fdmoe_refused_requests_total{instance="n:8080", reason="queue_tokens"}': "0x6 5x3",
    'fdmoe_refused_requests_total{instance="n:8080", reason="arena"}': "0x10",
    'fdmoe_replayed_requests_total{instance="n:8080"}': "0x6 8x3",
    'fdmoe_heartbeat_age_seconds{instance="n:9400", worker="a"}': "0x9 1.5",
    'fdmoe_heartbeat_age_seconds{instance="n:9400", worker="b"}': "0x10",
    'fdmoe_worker_state{instance="n:9400", worker="a", state="ready"}': "1x9 0",
    'fdmoe_worker_state{instance="n:9400", worker="a", state="dying"}': "0x9 1",
    'fdmoe_worker_state{instance="n:9400", worker="b", state="ready"}': "1x10",
    'fdmoe_path_switches_total{from="fused", to="baseline", reason="stall"}': "0x6 2x3",
    'fdmoe_path_switches_total{from="shadow", to="fused", reason="clean"}': "0x10",
    'fdmoe_stalls_total{cause="device"}': "0x6 2x3",
    'fdmoe_stalls_total{cause="host"}': "_x7 1 3 3",
    'fdmoe_stalls_total{cause="answer"}': "_x1 4x8",
    'fdmoe_worker_restarts_total{reason="stall"}': "0x6 4x3",
}

# What each query answers at the last sample, over a window of one minute. The counters of events stand at 0 when the
# minute begins, so that `increase` has nothing to extrapolate.
ANSWERS: dict[str, list[dict[str, float]]] = {
    "Path now": [
        {
            '{device="cuda:0", instance="n:9400"}': 2,
            '{device="cuda:1", instance="n:9400"}': 1,
            '{device="cuda:0", instance="m:9400"}': 3,
            '{device="cuda:0", instance="o:9400"}': 0,
        }
    ],
    "Requests by path": [{'{path="fused"}': 3, '{path="baseline"}': 1}],
    # of 100 a second 90 lie below 1 ms, 98 below 2 ms, all below 4 ms; interpolated within the bucket
    "Latency by path": [{'{path="fused"}': 0.001 * 50 / 90}, {'{path="fused"}': 0.002 + 0.002 * (99 - 98) / 2}],
    "Requests refused or failed, by code": [{'{code="503"}': 1}],
    "Requests in flight and queued": [{'{instance="n:8080"}': 3}, {'{instance="n:8080"}': 7}],
    "Arena in use": [{'{instance="n:8080"}': 4096}],
    "Requests turned away, by reason": [{'{reason="queue_tokens"}': 5, '{reason="arena"}': 0}],
    "Replayed requests": [{"{}": 8}],
    "Heartbeat age": [{'{instance="n:9400", worker="a"}': 1.5, '{instance="n:9400", worker="b"}': 0}],
    "Worker states": [
        {'{instance="n:9400", worker="a", state="dying"}': 1, '{instance="n:9400", worker="b", state="ready"}': 1}
    ],
    "Path switches": [
        {
            '{from="fused", to="baseline", reason="stall"}': 2,
            '{from="shadow", to="fused", reason="clean"}': 0,
        }
    ],
    # `host` was born within the minute, `answer` before it
    "Stalls": [{'{cause="device"}': 2, '{cause="host"}': 3, '{cause="answer"}': 0}],
    "Worker restarts": [{'{reason="stall"}': 4}],
}
ANSWERS["Path"] = ANSWERS["Path now"]


def load(dashboards: Path) -> dict:
    return json.loads((dashboards / "fdmoe-service.json").read_text(encoding="utf-8"))


def panels(dashboards: Path) -> list[dict]:
    return [panel for panel in load(dashboards)["panels"] if panel["type"] != "row"]


def test_the_generator_writes_these_bytes(dashboards: Path) -> None:
    pytest.importorskip(
        "grafana_foundation_sdk", reason="pip install 'grafana-foundation-sdk==1769699379!11.6.0' to regenerate"
    )
    generated = runpy.run_path(str(dashboards / "generate.py"))["service_dashboard"]()
    assert generated.encode() == (dashboards / "fdmoe-service.json").read_bytes(), "run: python dashboards/generate.py"


def test_identity_and_variables(dashboards: Path) -> None:
    service = load(dashboards)
    assert (service["uid"], service["title"], service["schemaVersion"]) == ("fdmoe-service", "fdmoe service", 41)
    source, device = service["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert (device["name"], device["query"]) == ("device", "label_values(fdmoe_path_active, device)")
    assert (device["multi"], device["includeAll"], device["allValue"]) == (True, True, ".*")
    assert device["datasource"]["uid"] == "${datasource}"


def test_the_path_is_told_by_name_and_colour(dashboards: Path) -> None:
    timeline = next(panel for panel in panels(dashboards) if panel["title"] == "Path")
    assert timeline["type"] == "state-timeline"
    (mapping,) = timeline["fieldConfig"]["defaults"]["mappings"]
    assert {value: (shown["text"], shown["color"]) for value, shown in mapping["options"].items()} == {
        "0": ("not serving", "red"),
        "1": ("fused", "green"),
        "2": ("shadow", "yellow"),
        "3": ("baseline", "orange"),
    }


def test_panels_are_whole_and_do_not_overlap(dashboards: Path) -> None:
    everything = load(dashboards)["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells: dict[tuple[int, int], str] = {}
    for panel in everything:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for cell in (
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ):
            assert cell not in cells, f"{panel['title']} lies over {cells[cell]}"
            cells[cell] = panel["title"]
    for panel in panels(dashboards):
        assert panel["description"].endswith("."), panel["title"]
        assert [target["refId"] for target in panel["targets"]] == list("AB"[: len(panel["targets"])])
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_query_answers_what_its_title_says(dashboards: Path, promtool: Promtool, tmp_path: Path) -> None:
    expected = [
        {
            "expr": target["expr"].replace("$device", ".*").replace("$__rate_interval", "1m"),
            "eval_time": "2m30s",
            "exp_samples": [{"labels": labels, "value": value} for labels, value in answer.items()],
        }
        for panel in panels(dashboards)
        for target, answer in zip(panel["targets"], ANSWERS[panel["title"]], strict=True)
    ]
    assert set(ANSWERS) == {panel["title"] for panel in panels(dashboards)}
    history = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": series, "values": values} for series, values in HISTORY.items()],
                "promql_expr_test": expected,
            }
        ],
    }
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump(history))
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_device_variable_leaves_the_other_devices_out(dashboards: Path, promtool: Promtool, tmp_path: Path) -> None:
    (path_now,) = (panel for panel in panels(dashboards) if panel["title"] == "Path now")
    (target,) = path_now["targets"]
    history = {
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": series, "values": values} for series, values in HISTORY.items()],
                "promql_expr_test": [
                    {
                        "expr": target["expr"].replace("$device", "cuda:1"),
                        "eval_time": "2m30s",
                        "exp_samples": [{"labels": '{device="cuda:1", instance="n:9400"}', "value": 1}],
                    }
                ],
            }
        ]
    }
    file = tmp_path / "device.yaml"
    file.write_text(yaml.safe_dump(history))
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_legends_use_labels_that_their_query_keeps(dashboards: Path) -> None:
    for panel in panels(dashboards):
        for target in panel["targets"]:
            kept = {label for labels in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in labels.split(", ")}
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= kept, panel["title"]
