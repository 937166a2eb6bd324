"""Layers that were held and mapped against the same layers, loaded."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import torch
from lending import settings_for
from moe_layers import random_tokens
from tiny_models import MODELS, randomized, save

from fdmoe_kernels import baseline_moe
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.weights.borrower import open_layers
from fdmoe_ops.weights.holder import hold
from fdmoe_ops.worker.engine import Engine
from fdmoe_watchdog.page import Page

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("architecture", MODELS)
def test_mapped_layers_have_the_bits_of_loaded_ones(
    architecture: str, dtype: str, tmp_path: Path, in_memory: Path
) -> None:
    expected = MODELS[architecture]
    torch.manual_seed(3)
    save(randomized(expected.make()).to(expected.dtype), tmp_path, "one file")
    held = hold(settings_for(tmp_path, in_memory, dtype=dtype), "cpu", "weights-g7")
    assert held.manifest == in_memory / "weights-g7.json"
    layers = open_layers(held.manifest, CPU)
    checkpoint = Checkpoint.open(tmp_path)
    assert list(layers) == [f"tiny/layers.{index}" for index in expected.moe_layers]
    for index, layer in zip(expected.moe_layers, layers.values(), strict=True):
        loaded = checkpoint.load(index, "cpu", getattr(torch, dtype))
        assert (layer.routing, layer.activation) == (expected.routing, expected.activation)
        assert layer.shared_experts == loaded.shared_experts
        assert layer.tensors.keys() == loaded.tensors.keys()
        for name, tensor in layer.tensors.items():
            assert tensor.dtype == loaded.tensors[name].dtype
            assert torch.equal(tensor, loaded.tensors[name]), name
            assert tensor.data_ptr() % 256 == 0
        x = random_tokens(loaded, 9, seed=index)
        assert torch.equal(baseline_moe(x, layer), baseline_moe(x, loaded))


def test_layers_are_those_asked_for_in_their_order(demo: Path, in_memory: Path) -> None:
    held = hold(settings_for(demo, in_memory, layers="3,1"), "cpu", "weights-g1")
    layers = open_layers(held.manifest, CPU)
    assert list(layers) == ["tiny/layers.3", "tiny/layers.1"]
    assert torch.equal(layers["tiny/layers.1"].down, Checkpoint.open(demo).load(1, "cpu", torch.float32).down)


def test_files_are_for_their_owner_and_as_large_as_promised(demo: Path, in_memory: Path) -> None:
    held = hold(settings_for(demo, in_memory), "cpu", "weights-g1")
    # of each layer: router 8 x 64, gate_up 8 x 64 x 64, down 8 x 64 x 32, in float32
    assert held.size_bytes == 4 * 4 * (512 + 32768 + 16384)
    blocks = [in_memory / f"weights-g1-{number}.bin" for number in range(4)]
    assert sorted(in_memory.iterdir()) == [*blocks, held.manifest]
    assert sum(block.stat().st_size for block in blocks) == held.size_bytes
    # all of it is memory: no hole that a full tmpfs could not fill later
    assert [block.stat().st_blocks * 512 >= block.stat().st_size for block in blocks] == [True] * 4
    for file in in_memory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(held.manifest.read_bytes())["format"] == 1


def test_both_paths_run_over_mapped_layers(demo: Path, in_memory: Path) -> None:
    layers = open_layers(hold(settings_for(demo, in_memory), "cpu", "weights-g1").manifest, CPU)
    (in_memory / "arena").write_bytes(bytes(4096))
    page = Page.create(in_memory / "page", generation=1, slots=2)
    engine = Engine(layers, page=page, arena=in_memory / "arena", max_batch_tokens=4, programs=0)
    assert engine.warm_up(faults=False) < 1e-5
