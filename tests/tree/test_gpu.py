"""The whole service on a CUDA device: right answers, stalls that cost no request, a watchdog without CUDA."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fdmoe_ops.chaos.game_day import Plan, run
from fdmoe_ops.chaos.load import Pool
from fdmoe_ops.chaos.plays import Group
from fdmoe_ops.chaos.tree import running_tree
from fdmoe_ops.checkpoint import Checkpoint

pytestmark = pytest.mark.gpu


def has_opened_a_gpu(pid: int) -> bool:
    return any(os.readlink(file).startswith("/dev/nvidia") for file in Path(f"/proc/{pid}/fd").iterdir())


def test_stalls_under_load_cost_no_request(demo: Path, blocks: list[torch.nn.Module]) -> None:
    x = [torch.randn(tokens, 64, generator=torch.Generator().manual_seed(tokens)) for tokens in (1, 2, 17, 64, 129)]
    with torch.no_grad():
        expected = tuple(blocks[2](rows[None])[0] for rows in x)
    pool = Pool("demo/layers.2", "FP32", 64, tuple(rows.numpy().tobytes() for rows in x), expected)
    flags = (f"--model-path={demo}", "--model-name=demo", "--devices=cuda", "--worker-max-batch-tokens=256")
    plan = Plan(flags, "cuda:0", pool, 8, {Group.ABORTABLE: 2, Group.OTHER: 1})
    stalled, ended = run(plan, ["stall", "endless"])
    for result in (stalled, ended):
        assert result.ok, result.problem
        assert {"fused", "baseline"} == {sent.path for sent in result.sent}
    assert len(stalled.detect_s) == len(stalled.answer_s) == 2
    assert any(sent.replayed for sent in ended.sent)
    assert len(ended.restart_s) == 1


@pytest.mark.parametrize("fault", ["illegal", "nan", "corrupt", "kill-workers", "memory-at-warm-up"])
def test_a_fault_of_the_catalogue_costs_no_request(demo: Path, fault: str) -> None:
    pool = Pool.of("demo/layers.1", Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32), 64)
    flags = (f"--model-path={demo}", "--model-name=demo", "--devices=cuda", "--worker-max-batch-tokens=256")
    plan = Plan(flags, "cuda:0", pool, 8, {Group.ABORTABLE: 2, Group.OTHER: 1})
    (result,) = run(plan, [fault])
    assert result.ok, result.problem
    assert result.repetitions == (2 if fault == "nan" else 1)


def test_the_watchdog_and_the_gateway_have_no_cuda(demo: Path) -> None:
    with running_tree(f"--model-path={demo}", "--devices=cuda") as tree:
        tree.wait_until("the spare processes", tree.has_its_spares)
        status = tree.status()
        for pid in (tree.process.pid, status["gateway"]["pid"]):
            assert "libcuda" not in Path(f"/proc/{pid}/maps").read_text()
        for worker in status["workers"]:
            assert "libcuda" in Path(f"/proc/{worker['pid']}/maps").read_text()
        # whatever libraries torch has loaded: a context is an open device
        assert not any(has_opened_a_gpu(spare["pid"]) for spare in status["devices"][0]["spares"])
        assert all(has_opened_a_gpu(worker["pid"]) for worker in status["workers"])
