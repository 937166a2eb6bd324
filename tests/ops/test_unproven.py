"""A worker whose fused path cannot be trusted is still a good baseline."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moe_layers import INTERPRETER, random_layer, random_tokens, relative_error
from structlog.testing import capture_logs

from fdmoe_kernels import comparing, reference_moe
from fdmoe_ops.worker.__main__ import _prove
from fdmoe_ops.worker.engine import Engine
from fdmoe_watchdog.page import Page


def test_a_failed_proof_leaves_the_baseline(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(8, 64, 32, 2, place=INTERPRETER)
    (in_memory / "arena").write_bytes(bytes(4096))
    page = Page.create(in_memory / "page", generation=1, slots=2)
    engine = Engine({"m": layer}, page=page, arena=in_memory / "arena", max_batch_tokens=4, programs=0)
    with capture_logs() as lines:
        assert _prove(engine, faults=False)
        monkeypatch.setitem(comparing.TOLERANCE, torch.float32, 0.0)
        assert not _prove(engine, faults=False)
    assert [line["event"] for line in lines] == ["warm", "fused_path_unproven"]
    assert "ProofError: the paths differ by" in lines[1]["reason"]
    x = random_tokens(layer, 3, seed=0)
    assert relative_error(engine.run_baseline(x, "m"), reference_moe(x, layer)) < 1e-5
