"""The manifest: a JSON file that says all a worker needs to know of the served layers, and how to map them.

Written by the holder, of mode 0600, all at once or not at all. A worker reads no checkpoint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import msgspec

from fdmoe_kernels.activation import SwiGLU
from fdmoe_kernels.routing import RoutingRule
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.weights.places import Dtype, Place, Size

FORMAT = 1


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all entries: a key that this program does not know is an error."""


class TmpfsFile(_Entry, frozen=True, tag_field="kind", tag="file"):
    """The block is a file beside the manifest."""

    name: Annotated[str, msgspec.Meta(pattern=r"^weights[0-9]*-g[0-9]+-[0-9]+\.bin$")]


class CudaAllocation(_Entry, frozen=True, tag_field="kind", tag="cuda_ipc"):
    """The block is an allocation of the holder; `handle` is its CUipcMemHandle (base64 in JSON)."""

    handle: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


class HeldLayer(_Entry, frozen=True):
    """One layer: the block that its tensors lie in, and the rules of MoELayer as data."""

    name: str
    block: TmpfsFile | CudaAllocation
    size_bytes: Size
    routing: RoutingRule
    activation: SwiGLU
    shared_experts: Annotated[int, msgspec.Meta(ge=0)]
    tensors: dict[str, Place]


class Manifest(_Entry, frozen=True):
    """`device` is cpu or cuda:N, `dtype` that of all weights but a correction bias."""

    format: int
    device: str
    dtype: Dtype
    layers: tuple[HeldLayer, ...]

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)


class _Format(msgspec.Struct):
    """Of a manifest of any format."""

    format: int


def write(manifest: Manifest, path: Path) -> None:
    """Raises OSError, FileExistsError among them when an earlier attempt left its half."""
    partial = path.with_suffix(".partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    partial.replace(path)


def read(path: Path) -> Manifest:
    """Raises WeightsError for a file that is absent, is none of ours, or is of another format."""
    try:
        text = path.read_bytes()
        found = msgspec.json.decode(text, type=_Format).format
        if found != FORMAT:
            raise WeightsError(f"{path}: a manifest of format {found}; this program reads format {FORMAT}")
        return msgspec.json.decode(text, type=Manifest)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not a manifest of weights: {error}") from error
