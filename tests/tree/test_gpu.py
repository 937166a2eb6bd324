"""The whole service on a CUDA device: right answers, stalls that cost no request, a watchdog without CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stalls import inject

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, running_tree

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def gpu_tree(demo: Path) -> Iterator[Tree]:
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--enable-chaos", "--devices=cuda",
        "--worker-max-batch-tokens=256",
        "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2", "--recovery-backoff-max-s=0.2",
    )  # fmt: skip
    with running_tree(*flags) as tree:
        yield tree


def test_stalls_under_load_cost_no_request(gpu_tree: Tree, blocks: list[torch.nn.Module]) -> None:
    x = [torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens)) for tokens in (1, 2, 17, 64, 129)]
    with torch.no_grad():
        expected = tuple(blocks[2](rows[None])[0] for rows in x)
    pool = Pool("demo/layers.2", "FP32", 64, tuple(rows.numpy().tobytes() for rows in x), expected)
    with Load(gpu_tree.gateway_address, pool, clients=8) as load:
        for fault in ("stall", "endless", "stall"):
            times = inject(gpu_tree, load, fault, 120)
            assert times["answer_ms"] > 0
    assert [sent.failed for sent in load.sent if sent.failed] == []
    assert not any(sent.wrong for sent in load.sent)
    assert any(sent.replayed for sent in load.sent)
    assert {"fused", "baseline"} == {sent.path for sent in load.sent}


def test_the_watchdog_and_the_gateway_have_no_cuda(gpu_tree: Tree) -> None:
    status = gpu_tree.status()
    for pid in (gpu_tree.process.pid, status["gateway"]["pid"]):
        assert "libcuda" not in Path(f"/proc/{pid}/maps").read_text()
    for worker in status["workers"]:
        assert "libcuda" in Path(f"/proc/{worker['pid']}/maps").read_text()
