"""One safetensors file, memory-mapped: an 8-byte little-endian length, a JSON header of that length, then the tensors.

The safetensors library reads and checks it; its CPU tensors for torch are views of the mapping (measured with 0.8.0:
200 MB read through ten tensors added 0.1 MB of anonymous memory). The mapping is private, so that a stray write to a
view cannot reach the file. What the library says of a broken file names no sizes: those are found out here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fdmoe_ops.checkpoint.errors import MissingShardError, ShardError, TruncatedShardError

LENGTH_BYTES = 8
# the format's own limit; in a file of another kind the first 8 bytes are nearly always more
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What the header says of one tensor; `dtype` in the format's own words (F32, BF16, F8_E4M3)."""

    dtype: str
    shape: tuple[int, ...]


class Shard:
    """A mapped file. The header is read and checked at once, tensors only where somebody looks into a view.

    Raises MissingShardError, TruncatedShardError, or ShardError for a file that is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = _open(path)
        self.names: frozenset[str] = frozenset(self._file.keys())

    def header(self, name: str) -> TensorHeader:
        entry = self._file.get_slice(name)
        return TensorHeader(entry.get_dtype(), tuple(entry.get_shape()))

    def view(self, name: str) -> torch.Tensor:
        """The tensor as a view of the mapping, which lives as long as the view does."""
        tensor = self._file.get_tensor(name)
        assert isinstance(tensor, torch.Tensor), f"safetensors returned {type(tensor)}"
        return tensor


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except FileNotFoundError as error:
        raise MissingShardError(f"{path}: not found") from error
    except SafetensorError as error:
        raise _diagnose(path, str(error)) from error


def _diagnose(path: Path, said: str) -> ShardError:
    """The error for a file that safetensors refuses with the words `said`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        if size < LENGTH_BYTES:
            return TruncatedShardError(f"{path}: {size} bytes; a safetensors file has more than {LENGTH_BYTES}")
        if length > MAX_HEADER_BYTES:
            return ShardError(f"{path}: not a safetensors file: it begins with {start!r} ({said})")
        if size < LENGTH_BYTES + length:
            return TruncatedShardError(f"{path}: {size} bytes; its header alone ends at {LENGTH_BYTES + length}")
        expected = _expected_bytes(file.read(length))
    if expected is None or size == expected:
        return ShardError(f"{path}: not a usable safetensors file: {said}")
    if size < expected:
        return TruncatedShardError(f"{path}: {size} bytes; its header promises {expected}")
    return ShardError(f"{path}: {size} bytes; its header promises {expected}, and nothing may follow")


def _expected_bytes(header: bytes) -> int | None:
    """The size of a file with this header, or None when the header is nonsense."""
    try:
        entries = json.loads(header)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        return LENGTH_BYTES + len(header) + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return None
