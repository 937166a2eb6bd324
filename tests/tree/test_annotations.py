"""A stall in a real tree is told in a Grafana; and a Grafana that hangs changes nothing for anybody."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from fake_grafana import TOKEN, FakeGrafana, Trouble, running_grafana
from prometheus_client.parser import text_string_to_metric_families

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, read_events, running_tree

Event = dict[str, Any]
RESULTS = ("sent", "failed", "dropped")


def test_stalls_are_told_and_wait_for_nobody(demo: Path, blocks: list[torch.nn.Module], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--model-layers=1", "--enable-chaos",
        "--recovery-cooldown-initial-s=0.5", "--recovery-cooldown-max-s=0.5", f"--grafana-token-file={token}",
        # whoever waits for a Grafana that hangs waits longer than this test does
        "--grafana-timeout-s=600",
    )  # fmt: skip
    with running_grafana() as grafana, running_tree(f"--grafana-url={grafana.url}", *flags) as tree:
        told = stalled(tree, blocks)
        grafana.wait_for(lambda: any(one["timeEnd"] > one["time"] for one in with_tag(grafana, "event:path_switch")))
        tree.wait_until("the count", lambda: counts(tree) == [len(grafana.writes()), 0, 0])
        check(grafana, told, tree)

        before = counts(tree)
        grafana.troubles.append(Trouble("/api/annotations", hang=True))
        told = stalled(tree, blocks)
        assert [event["event"] for event in told if event["event"].startswith("annotator")] == []
        assert counts(tree) == before, "the one that waits for an answer is neither written nor given up"
        assert tree.stop() == 0
        assert "annotations_dropped" in tree.log_tail()


def stalled(tree: Tree, blocks: list[torch.nn.Module]) -> list[Event]:
    """One stall under load, up to the fused path's return: what the watchdog said. No request is lost or wrong."""
    x = [torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens)) for tokens in (1, 3)]
    with torch.no_grad():
        expected = tuple(blocks[1](rows[None])[0] for rows in x)
    pool = Pool("demo/layers.1", "FP32", 64, tuple(rows.numpy().tobytes() for rows in x), expected)
    last = read_events(tree)[-1]["at"]

    def since() -> list[Event]:
        return [event for event in read_events(tree) if event["at"] > last]

    with Load(tree.gateway_address, pool, clients=2) as load:
        tree.wait_until("answers of the fused path", lambda: any(sent.path == "fused" for sent in list(load.sent)))
        tree.arm("stall")
        tree.wait_until("the recovery", lambda: any(event["event"] == "recovery" for event in since()))
        tree.wait_until("the fused path", lambda: tree.status()["path"] == "fused")
    assert [sent.failed for sent in load.sent if sent.failed or sent.retries] == []
    assert not any(sent.wrong for sent in load.sent)
    return since()


def counts(tree: Tree) -> list[float]:
    families = text_string_to_metric_families(tree.get("/metrics", watchdog=True)[1].decode())
    samples = [sample for family in families for sample in family.samples]
    by_result = {s.labels["result"]: s.value for s in samples if s.name == "fdmoe_grafana_annotations_total"}
    return [by_result[result] for result in RESULTS]


def with_tag(grafana: FakeGrafana, tag: str) -> list[dict[str, Any]]:
    return [one for one in grafana.annotations.values() if tag in one["tags"]]


def check(grafana: FakeGrafana, told: list[Event], tree: Tree) -> None:
    """One annotation for the stall, with verdict and flight record, one for the baseline's time, one for the gap."""
    assert len(grafana.annotations) == 3
    (stall,), (region,), (gap,) = (with_tag(grafana, f"event:{name}") for name in ("stall", "path_switch", "recovery"))
    for one, reason in ((stall, "stall"), (region, "stall"), (gap, "abort")):
        assert {"fdmoe", "device:cpu", f"reason:{reason}"} < set(one["tags"])
    (said,) = [event for event in told if event["event"] == "stall"]
    (record,) = [event for event in told if event["event"] == "flight_record"]
    assert said["verdict"] in stall["text"]
    assert stall["text"].endswith(f"\nFlight record: {record['file']}")
    assert tree.status()["last_flight"].endswith(f"/{record['file']}")
    left, *_, back = [event["at"] for event in told if event["event"] == "path_switch"]
    assert [iso(region[key]) for key in ("time", "timeEnd")] == [left, back]
    assert region["text"].splitlines()[-1].endswith("the fused path serves again.")
    (recovered,) = [event for event in told if event["event"] == "recovery"]
    assert iso(gap["timeEnd"]) == recovered["at"]
    assert gap["timeEnd"] - gap["time"] == round(recovered["seconds"] * 1000)


def iso(unix_ms: int) -> str:
    """As the watchdog writes the time of an event."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=unix_ms)).isoformat(timespec="milliseconds")
