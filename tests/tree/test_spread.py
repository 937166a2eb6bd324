"""One tree over two devices: both serve, and one of them can lose all its workers without anybody's loss."""

from __future__ import annotations

from pathlib import Path

import torch

from fdmoe_kernels import MoELayer
from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, read_events, running_tree
from fdmoe_ops.checkpoint import Checkpoint


def _both_whole(tree: Tree) -> bool:
    status = tree.status()
    paths = [device["path"] for device in status["devices"] if device["active"] is not None]
    return paths == ["fused", "fused"] and all(worker["state"] == "ready" for worker in status["workers"])


def _batches(tree: Tree) -> dict[str, int]:
    """How many batches each device's workers have served since their start."""
    served: dict[str, int] = {}
    for worker in tree.status()["workers"]:
        served[worker["device"]] = served.get(worker["device"], 0) + sum(worker["batches"].values())
    return served


def test_two_devices_share_the_load_and_one_carries_on_alone(demo: Path) -> None:
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--model-layers=1", "--enable-chaos", "--devices=cpu:0,cpu:1",
        "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2",
    )  # fmt: skip
    layer: MoELayer = Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32)
    pool = Pool.of("demo/layers.1", layer, 40)
    with running_tree(*flags) as tree:
        names = [worker["name"] for worker in tree.status()["workers"]]
        assert names == ["a0", "b0", "a1", "b1"]
        assert [device["holder"]["name"] for device in tree.status()["devices"]] == ["weights0", "weights1"]
        before = _batches(tree)
        with Load(tree.gateway_address, pool, clients=4) as load:
            tree.wait_until("batches on both", lambda: all(n > before[name] + 2 for name, n in _batches(tree).items()))
            tree.arm("kill-workers")
            count = len(load.sent)
            tree.wait_until("answers of the other", lambda: len(load.sent) > count + 4)
            tree.wait_until("both devices", lambda: _both_whole(tree))
        gone = {event["worker"] for event in read_events(tree) if event["event"] == "worker_gone"}
        assert gone == {"a0", "b0"}
        assert [sent for sent in load.sent if sent.failed or sent.wrong or sent.retries] == []
        assert tree.stop() == 0
