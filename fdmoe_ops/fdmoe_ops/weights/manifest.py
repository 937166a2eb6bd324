"""What a holder has: one allocation a layer, and how to map it and find the tensors in it.

    allocation:   | router | pad | gate_up | pad | down | pad | ...        each tensor at a multiple of 256 bytes

On the CPU an allocation is a file in the run directory, on a GPU device memory behind a CUDA IPC handle. The manifest
holds all that a worker needs: it never reads the checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import torch

from fdmoe_kernels import MoELayer, RoutingRule, SwiGLU

FORMAT = 1
# TMA wants 16 bytes, a copy engine's bursts are 128, and cudaMalloc gives 256
ALIGNMENT_BYTES = 256
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WeightsError(RuntimeError):
    """The weights cannot be held or mapped here; the message says why."""


class TensorEntry(msgspec.Struct, frozen=True):
    """`offset` in bytes from the allocation's start."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class LayerEntry(msgspec.Struct, frozen=True):
    """`file` on the CPU, `handle` (hexadecimal) on a GPU; `tensors` by MoELayer's names for them."""

    name: str
    size_bytes: int
    file: str
    handle: str
    routing: RoutingRule
    activation: SwiGLU
    shared_experts: int
    tensors: dict[str, TensorEntry]

    def assemble(self, memory: torch.Tensor) -> MoELayer:
        """The layer over its allocation, given as bytes. Raises WeightsError for entries that do not fit it."""
        try:
            tensors = {name: self._view(memory, entry) for name, entry in self.tensors.items()}
            return MoELayer(
                **tensors, routing=self.routing, activation=self.activation, shared_experts=self.shared_experts
            )  # fmt: skip
        except (TypeError, ValueError, RuntimeError) as error:
            raise WeightsError(f"layer {self.name} is not one as the manifest describes it: {error}") from error

    def _view(self, memory: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise ValueError(f"dtype is {entry.dtype}; {', '.join(DTYPES)} are allowed")
        size = dtype.itemsize * torch.Size(entry.shape).numel()
        if entry.offset % ALIGNMENT_BYTES or not 0 <= entry.offset <= memory.numel() - size:
            raise ValueError(f"{size} bytes at {entry.offset} do not lie in {memory.numel()}")
        return memory[entry.offset : entry.offset + size].view(dtype).view(entry.shape)


class Manifest(msgspec.Struct, frozen=True):
    format: int
    device: str
    layers: tuple[LayerEntry, ...]

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)


def place(layer: MoELayer) -> tuple[dict[str, TensorEntry], int]:
    """Where each tensor of a layer lies in its allocation, and the allocation's size in bytes."""
    entries, end = {}, 0
    for name, tensor in layer.tensors.items():
        entries[name] = TensorEntry(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), end)
        end += -(-tensor.nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return entries, end


def entry(name: str, layer: MoELayer, *, file: str = "", handle: str = "") -> LayerEntry:
    tensors, size = place(layer)
    return LayerEntry(
        name, size, file, handle, layer.routing, layer.activation, layer.shared_experts, tensors
    )  # fmt: skip


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def write(manifest: Manifest, path: Path) -> None:
    """Whole or not at all, readable by this user alone (mode 0600). Raises OSError."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(manifest))
    os.replace(partial, path)


def read(path: Path) -> Manifest:
    """Raises WeightsError for a file that is not there or is no manifest of this format."""
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise WeightsError(f"the weights' manifest cannot be read: {error}") from error
    except (msgspec.DecodeError, ValueError) as error:
        raise WeightsError(f"{path} is no manifest of weights: {error}") from error
    if manifest.format != FORMAT:
        raise WeightsError(f"{path} has format {manifest.format}; this program reads {FORMAT}")
    return manifest
