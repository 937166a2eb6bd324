"""A worker's way to its layers."""

from __future__ import annotations

from pathlib import Path

import torch

from fdmoe_kernels import MoELayer
from fdmoe_ops.weights import cpu, cuda, manifest


def open_layers(path: Path, device: torch.device) -> dict[str, MoELayer]:
    """The layers of a manifest by name, mapped and not copied. Raises WeightsError.

    Their tensors must not be written to: other processes map the same memory.
    """
    found = manifest.read(path)
    if torch.device(found.device).type != device.type:
        raise manifest.WeightsError(f"{path} holds weights on {found.device}; {device} is asked for")
    layers = {}
    for entry in found.layers:
        memory = cpu.open_memory(entry) if device.type == "cpu" else cuda.open_memory(entry, device)
        layers[entry.name] = entry.assemble(memory)
    return layers
