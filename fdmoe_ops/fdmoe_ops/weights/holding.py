"""From a checkpoint to memory that workers map."""

from __future__ import annotations

from pathlib import Path

import torch

from fdmoe_ops import settings as tree
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.weights import cpu, cuda, manifest
from fdmoe_ops.weights.manifest import LayerEntry, Manifest


def hold(settings: tree.Settings, device: str, stem: str) -> tuple[Path, int]:
    """Hold every served layer; the manifest's path, `stem`.json in the run directory, and the bytes held.

    Layers are packed on the CPU one after another, so that beside what is held there is one layer in memory.

    Raises CheckpointError for a checkpoint that cannot be served, WeightsError where there is no room for it.
    """
    model = settings.model
    assert settings.run_dir is not None, "a resolved tree has a run_dir"
    assert model.path is not None, "a resolved tree has a model path"
    checkpoint = Checkpoint.open(model.path)
    indices = checkpoint.moe_layers if model.layers == "all" else model.layers
    checkpoint.check(indices)
    dtype: torch.dtype = getattr(torch, model.dtype)
    place = torch.device(device)
    holder = cuda.Holder(place.index or 0) if place.type == "cuda" else None
    entries: list[LayerEntry] = []
    for index in indices:
        name = f"{model.name}/layers.{index}"
        layer = checkpoint.load(index, device="cpu", dtype=dtype)
        if holder is None:
            entries.append(cpu.hold(name, layer, settings.run_dir / f"{stem}-{index}.bin"))
        else:
            entries.append(holder.hold(name, layer))
    found = Manifest(manifest.FORMAT, device, tuple(entries))
    path = settings.run_dir / f"{stem}.json"
    manifest.write(found, path)
    return path, found.size_bytes
