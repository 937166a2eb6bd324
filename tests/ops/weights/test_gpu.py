"""Weights in real device memory: lent by one process, used by this one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lending import DEADLINE_S, Parent, settings_for
from moe_layers import random_tokens

from fdmoe_kernels import baseline_moe
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.weights.borrower import open_layers
from fdmoe_ops.weights.errors import WeightsError

pytestmark = pytest.mark.gpu


@pytest.fixture
def gpu_parent(demo: Path, in_memory: Path) -> Iterator[Parent]:
    parent = Parent(settings_for(demo, in_memory, dtype="bfloat16", device="cuda:0"))
    yield parent
    parent.stop()


def test_mapped_layers_are_the_holders_memory_and_have_the_bits_of_loaded_ones(gpu_parent: Parent, demo: Path) -> None:
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    ready = gpu_parent.start_holder().hear()
    assert ready.size_bytes == 4 * 99328
    before = torch.cuda.memory_allocated(device)
    layers = open_layers(Path(ready.manifest), device)
    assert torch.cuda.memory_allocated(device) == before
    checkpoint = Checkpoint.open(demo)
    for index, layer in enumerate(layers.values()):
        loaded = checkpoint.load(index, device, torch.bfloat16)
        for name, tensor in layer.tensors.items():
            assert torch.equal(tensor, loaded.tensors[name]), name
        x = random_tokens(loaded, 33, seed=index)
        assert torch.equal(baseline_moe(x, layer), baseline_moe(x, loaded))


def test_a_manifest_whose_holder_was_killed_is_refused(gpu_parent: Parent) -> None:
    device = torch.device("cuda:0")
    torch.cuda.set_device(device)
    holder = gpu_parent.start_holder()
    manifest = Path(holder.hear().manifest)
    holder.process.kill()
    holder.process.wait(DEADLINE_S)
    with pytest.raises(WeightsError, match="cannot be mapped: cuIpcOpenMemHandle answered CUDA_ERROR_"):
        open_layers(manifest, device)
