"""Stalls during a stream of requests: every request is answered right, and every eye sees what happened."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from scraped import metrics, value

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, read_events

EVENTS = {
    "stall": [
        "fault_armed", "stall", "flight_record", "path_switch", "abort_ended", "recovery", "path_switch", "path_switch",
    ],
    "endless": [
        "fault_armed", "stall", "flight_record", "path_switch", "abort_timed_out", "fence", "route", "kill", "recovery",
        "worker_gone", "worker_start", "path_switch", "path_switch", "worker_ready",
    ],
}  # fmt: skip

WORKERS_COUNT = ("fdmoe_layer_duration_seconds_", "fdmoe_expert_tokens_total", "fdmoe_comm_bytes_total")


def whole(tree: Tree) -> bool:
    status = tree.status()
    return status["path"] == "fused" and all(worker["state"] == "ready" for worker in status["workers"])


@pytest.mark.parametrize("fault", ["stall", "endless"])
def test_a_stalled_kernel_costs_no_request(
    tree: Tree, blocks: list[torch.nn.Module], fault: str
) -> None:  # fmt: skip
    tree.wait_until("the fused path", lambda: whole(tree))
    before = metrics(tree, watchdog=True)
    generation = {worker["name"]: worker["generation"] for worker in tree.status()["workers"]}
    active = tree.active()
    x = [torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens)) for tokens in (1, 2, 3, 5)]
    with torch.no_grad():
        expected = tuple(blocks[1](rows[None])[0] for rows in x)
    pool = Pool("demo/layers.1", "FP32", 64, tuple(rows.numpy().tobytes() for rows in x), expected)
    with Load(tree.gateway_address, pool, clients=4) as load:
        tree.wait_until("answers of the fused path", lambda: any(sent.path == "fused" for sent in list(load.sent)))
        seen_events = len(read_events(tree))
        last = read_events(tree)[-1]["at"]
        tree.arm(fault)
        tree.wait_until(
            "the recovery", lambda: any(e["event"] == "recovery" and e["at"] > last for e in read_events(tree))
        )
        tree.wait_until("the fused path", lambda: whole(tree))
        count = len(load.sent)
        tree.wait_until(
            "fused answers afterwards", lambda: any(sent.path == "fused" for sent in list(load.sent)[count:])
        )
    assert seen_events
    assert [sent.failed for sent in load.sent if sent.failed or sent.retries] == []
    assert not any(sent.wrong for sent in load.sent)
    assert {"fused", "baseline"} <= {sent.path for sent in load.sent}
    assert any(sent.replayed for sent in load.sent) == (fault == "endless")

    events = [event for event in read_events(tree) if event["at"] > last]
    # how many sizes come by while the fused path proves itself is the clients' affair
    named = [event["event"] for event in events if event["event"] != "buckets_proven"]
    assert sorted(named) == sorted(EVENTS[fault])
    if fault == "endless":
        begun, ready = (next(e for e in events if e["event"] == name) for name in ("worker_start", "worker_ready"))
        assert begun["spare"], "the process that had imported everything became the worker"
        assert ready["starting_s"] < ready["seconds"] / 2
    buckets = tree.status()["devices"][0]["buckets"]
    assert buckets, "the fused path is back for sizes that were compared"
    assert set(buckets) <= {1, 2, 4, 8, 16, 32}
    stall = next(event for event in events if event["event"] == "stall")
    assert (stall["worker"], stall["cause"]) == (active, "stall")
    record = json.loads(Path(tree.status()["last_flight"]).read_text())
    assert record["verdict"] == stall["verdict"]
    in_flight = record["in_flight"]
    assert len(in_flight["requests"]) == in_flight["count"] >= 1, "the gateway has said whose launch it was"
    assert all(re.fullmatch("[0-9a-f]{12}-[0-9a-f]+", name) for name in in_flight["requests"])
    expected_words = "does not finish it" if fault == "endless" else "its completion was lost"
    assert expected_words in record["verdict"]

    after = metrics(tree, watchdog=True)

    def rise(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    rung = {"stall": "abort", "endless": "replay"}[fault]
    result = {"stall": "ended", "endless": "timed_out"}[fault]
    assert rise("fdmoe_stalls_total", cause="stall") == 1
    assert rise("fdmoe_aborts_total", result=result) == 1
    assert rise("fdmoe_recovery_seconds_count", rung=rung) == 1
    assert rise("fdmoe_stall_detection_seconds_count", cause="stall") == 1
    for hop in (("fused", "baseline", "stall"), ("baseline", "shadow", "cooled_down"), ("shadow", "fused", "proven")):
        assert rise("fdmoe_path_switches_total", **dict(zip(("from", "to", "reason"), hop, strict=True))) == 1
    assert rise("fdmoe_shadow_checks_total", result="ok") >= 3
    assert rise("fdmoe_shadow_checks_total", result="mismatch") == 0
    assert rise("fdmoe_device_work_items_total", device="cpu", phase="up") > 0
    assert rise("fdmoe_flight_records_total") == 1
    assert rise("fdmoe_recovery_failures_total", rung="restart") == 0
    # what a worker counted outlives it
    assert all(after[key] >= before[key] for key in before if key[0].startswith(WORKERS_COUNT)), "a counter fell"
    for path in ("fused", "baseline"):
        key = "fdmoe_layer_duration_seconds_count"
        assert sum(rise(key, path=path, bucket=str(1 << power)) for power in range(6)) > 0
    assert value(after, "fdmoe_path_active", device="cpu", path="fused") == 1
    if fault == "endless":
        assert rise("fdmoe_worker_restarts_total", reason="stall") == 1
        assert value(after, "fdmoe_worker_generation", device="cpu", worker=active) == generation[active] + 1
        assert tree.active() != active
    gateway = metrics(tree, watchdog=False)
    replayed = value(gateway, "fdmoe_replayed_requests_total")
    assert (replayed > 0) == (fault == "endless")


def test_a_standby_that_cannot_be_reached_costs_time_and_no_request(tree: Tree, blocks: list[torch.nn.Module]) -> None:
    tree.wait_until("the fused path", lambda: whole(tree))
    before = metrics(tree, watchdog=True)
    active = tree.active()
    (standby,) = (worker for worker in tree.status()["workers"] if worker["name"] != active)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = blocks[1](x[None])[0]
    pool = Pool("demo/layers.1", "FP32", 64, (x.numpy().tobytes(),), (expected,))
    last = read_events(tree)[-1]["at"]
    (tree.run_dir / f"worker-{standby['name']}-g{standby['generation']}.sock").unlink()

    def came(name: str, **fields: object) -> list[dict[str, object]]:
        found = (event for event in read_events(tree) if event["at"] > last and event["event"] == name)
        return [event for event in found if fields.items() <= event.items()]

    with Load(tree.gateway_address, pool, clients=4) as load:
        tree.wait_until("answers", lambda: len(load.sent) >= 4)
        tree.arm("kill-active")
        tree.wait_until("the report", lambda: came("link_lost"))
        tree.wait_until("the recovery", lambda: came("recovery"))
        tree.wait_until("another standby", lambda: came("worker_ready", worker=standby["name"]))
        tree.wait_until("the fused path", lambda: whole(tree))
        count = len(load.sent)
        tree.wait_until("answers afterwards", lambda: len(load.sent) > count + 4)
    assert [sent for sent in load.sent if sent.failed or sent.retries or sent.wrong] == []
    assert any(sent.replayed for sent in load.sent)

    (lost,) = came("link_lost")
    assert lost["worker"] == standby["name"]
    assert str(lost["reason"]).startswith("no connection within 10 s: [Errno 2] No such file or directory")
    assert [fence["worker"] for fence in came("fence", cause="unreachable")] == [standby["name"]]
    assert [start["worker"] for start in came("worker_start", reason="unreachable")] == [standby["name"]]
    assert [route["worker"] for route in came("route")] == [standby["name"], active]
    (recovery,) = came("recovery")
    assert (recovery["rung"], recovery["worker"]) == ("replay", active)
    assert float(str(recovery["seconds"])) >= 10, "from the first worker's end on"
    after = metrics(tree, watchdog=True)
    for name, labels in (
        ("fdmoe_worker_restarts_total", {"reason": "exit"}),
        ("fdmoe_worker_restarts_total", {"reason": "unreachable"}),
        ("fdmoe_recovery_seconds_count", {"rung": "replay"}),
    ):
        assert value(after, name, **labels) - value(before, name, **labels) == 1, labels
    record = json.loads(Path(tree.status()["last_flight"]).read_text())
    assert record["verdict"].startswith("the gateway cannot reach the worker; ")
