"""Maps held weights in a worker."""

from __future__ import annotations

from pathlib import Path

import torch

from fdmoe_kernels.layer import MoELayer
from fdmoe_ops.weights.device import open_block
from fdmoe_ops.weights.driver import Driver
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.weights.files import map_read_only
from fdmoe_ops.weights.manifest import CudaAllocation, HeldLayer, read
from fdmoe_ops.weights.places import views


def open_layers(manifest: Path, device: torch.device) -> dict[str, MoELayer]:
    """The layers that the manifest names, by name, over the holder's memory: nothing is copied.

    They are for reading. On the CPU a write ends the process by SIGSEGV; on a GPU nothing stops it. On a CUDA device
    torch must be set to it (torch.cuda.set_device). Raises WeightsError for a manifest or a file that is absent,
    damaged or of another device, and for memory that cannot be mapped.
    """
    held = read(manifest)
    if held.device != str(device):
        raise WeightsError(f"{manifest}: holds weights on {held.device}; this process computes on {device}")
    driver = Driver(device.index) if device.type == "cuda" else None
    layers: dict[str, MoELayer] = {}
    for layer in held.layers:
        try:
            block = _map(layer, manifest.parent, device, driver)
            layers[layer.name] = MoELayer(
                **views(block, layer.tensors),
                routing=layer.routing,
                activation=layer.activation,
                shared_experts=layer.shared_experts,
            )
        except (WeightsError, ValueError, TypeError) as error:
            # tensors of wrong names are wrong arguments of MoELayer
            raise WeightsError(f"{manifest}: {layer.name}: {error}") from error
    return layers


def _map(layer: HeldLayer, directory: Path, device: torch.device, driver: Driver | None) -> torch.Tensor:
    if isinstance(layer.block, CudaAllocation):
        if driver is None:
            raise WeightsError(f"its memory is a CUDA allocation; this process computes on {device}")
        return open_block(driver, layer.block, layer.size_bytes, device)
    return map_read_only(directory / layer.block.name, layer.size_bytes)
