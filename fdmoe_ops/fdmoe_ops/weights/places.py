"""Where each tensor of a layer lies in the one block of memory that holds the layer.

    | router | .. | gate_up ........ | .. | down ........ | .. |     each begins at a multiple of 256 bytes

One block a layer and not one a tensor: a CUDA IPC handle stands for a whole allocation, and there is one to map.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch

from fdmoe_kernels.layer import MoELayer
from fdmoe_ops.arena import ALIGNMENT_BYTES, round_up
from fdmoe_ops.weights.errors import WeightsError

Dtype = Literal["float32", "bfloat16", "float16"]
Size = Annotated[int, msgspec.Meta(ge=1)]


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A contiguous tensor, `offset` bytes into its layer's block."""

    dtype: Dtype
    shape: tuple[Size, ...]
    offset: Annotated[int, msgspec.Meta(ge=0, multiple_of=ALIGNMENT_BYTES)]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.torch_dtype.itemsize

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def arrange(layer: MoELayer) -> tuple[dict[str, Place], int]:
    """A place for each tensor of the layer, which may be on "meta", and the bytes of their block."""
    places, end = {}, 0
    for name, tensor in layer.tensors.items():
        places[name] = Place(dtype_name(tensor.dtype), tuple(tensor.shape), end)
        end += round_up(tensor.nbytes)
    return places, end


def views(block: torch.Tensor, places: Mapping[str, Place]) -> dict[str, torch.Tensor]:
    """The tensors in `block`, which is uint8. Raises WeightsError for one that does not lie in it."""
    tensors = {}
    for name, place in places.items():
        end = place.offset + place.size_bytes
        if end > block.numel():
            raise WeightsError(f"{name} ends at byte {end} of a block of {block.numel()}")
        tensors[name] = block[place.offset : end].view(place.torch_dtype).view(place.shape)
    return tensors


def dtype_name(dtype: torch.dtype) -> Dtype:
    names: dict[torch.dtype, Dtype] = {
        torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16",
    }  # fmt: skip
    return names[dtype]
