"""Reads the checkpoint and fills the blocks of memory that workers borrow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from fdmoe_kernels.layer import MoELayer
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.settings import Settings
from fdmoe_ops.weights.device import DeviceBlocks
from fdmoe_ops.weights.files import FileBlocks
from fdmoe_ops.weights.manifest import FORMAT, CudaAllocation, HeldLayer, Manifest, TmpfsFile, write
from fdmoe_ops.weights.places import Place, arrange, dtype_name, views


class Blocks(Protocol):
    """One block of memory a layer, on some device."""

    def reserve(self, sizes: Sequence[int]) -> None: ...

    def release(self) -> None: ...

    def fill(self, number: int) -> AbstractContextManager[torch.Tensor]: ...

    def lend(self, number: int) -> TmpfsFile | CudaAllocation: ...


@dataclass(frozen=True, slots=True)
class Held:
    """What is in memory. `blocks` must live as long as it is lent."""

    manifest: Path
    size_bytes: int
    blocks: Blocks


def hold(settings: Settings, device: str, stem: str) -> Held:
    """Put the served layers into memory of `device` and write their manifest, STEM.json in the run directory.

    All memory is reserved before the first weight is read. Beside it the CPU needs none of a layer's size, and a CUDA
    device needs one layer's size of host memory. Raises CheckpointError, or WeightsError where there is no room.
    """
    model, run_dir, place = settings.model, settings.run_dir, torch.device(device)
    assert model.path is not None, "a resolved tree has a model path"
    assert run_dir is not None, "a resolved tree has a run_dir"
    dtype: torch.dtype = getattr(torch, model.dtype)
    checkpoint = Checkpoint.open(model.path)
    indices = checkpoint.moe_layers if model.layers == "all" else model.layers
    checkpoint.check(indices)
    plans = [checkpoint.load(index, "meta", dtype) for index in indices]
    arranged = [arrange(plan) for plan in plans]
    blocks: Blocks = FileBlocks(run_dir, stem) if place.type == "cpu" else DeviceBlocks(place)
    try:
        blocks.reserve([size for _, size in arranged])
        for number, (index, (places, _)) in enumerate(zip(indices, arranged, strict=True)):
            _fill(blocks, number, model.path, index, dtype, places)
        layers = tuple(
            _entry(f"{model.name}/layers.{index}", plan, places, size, blocks.lend(number))
            for number, (index, plan, (places, size)) in enumerate(zip(indices, plans, arranged, strict=True))
        )
        path = run_dir / f"{stem}.json"
        manifest = Manifest(FORMAT, device, dtype_name(dtype), layers)
        write(manifest, path)
    except BaseException:
        blocks.release()
        raise
    return Held(path, manifest.size_bytes, blocks)


def _fill(blocks: Blocks, number: int, path: Path, index: int, dtype: torch.dtype, places: dict[str, Place]) -> None:
    """A function of its own: what it has mapped and allocated for a layer ends before the next."""
    with blocks.fill(number) as block:
        # opened again for each layer, so that the mapping of its files ends here too
        Checkpoint.open(path).load(index, "cpu", dtype, out=views(block, places))


def _entry(
    name: str, plan: MoELayer, places: dict[str, Place], size_bytes: int, block: TmpfsFile | CudaAllocation
) -> HeldLayer:
    return HeldLayer(name, block, size_bytes, plan.routing, plan.activation, plan.shared_experts, places)
