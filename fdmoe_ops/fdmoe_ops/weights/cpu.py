"""Weights in files of the run directory: written by the holder, mapped read-only by workers."""

from __future__ import annotations

import mmap
import os
import warnings
from pathlib import Path

import torch

from fdmoe_kernels import MoELayer
from fdmoe_ops.weights import manifest
from fdmoe_ops.weights.manifest import LayerEntry, WeightsError


def hold(name: str, layer: MoELayer, path: Path) -> LayerEntry:
    """Copy a layer into a file of mode 0600, which must not exist yet.

    Raises WeightsError where its file system has no room: now, and not by SIGBUS at the first use of a page.
    """
    entry = manifest.entry(name, layer, file=str(path))
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, entry.size_bytes)
        with mmap.mmap(descriptor, entry.size_bytes) as mapped:
            memory = torch.frombuffer(mapped, dtype=torch.uint8)
            for tensor_name, tensor in layer.tensors.items():
                start = entry.tensors[tensor_name].offset
                memory[start : start + tensor.nbytes] = manifest.bytes_of(tensor)
            del memory
    except OSError as error:
        raise WeightsError(
            f"layer {name} needs {entry.size_bytes} bytes in {path.parent}: {error.strerror or error}"
        ) from error
    finally:
        os.close(descriptor)
    return entry


def open_memory(entry: LayerEntry) -> torch.Tensor:
    """The layer's allocation, mapped so that a stray store ends this process and spoils nobody's weights.

    Raises WeightsError where the file is not there or has another size.
    """
    try:
        with open(entry.file, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != entry.size_bytes:
                raise WeightsError(f"{entry.file} has {size} bytes; the manifest says {entry.size_bytes}")
            mapped = mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ)
    except OSError as error:
        raise WeightsError(f"the weights of layer {entry.name} cannot be mapped: {error}") from error
    with warnings.catch_warnings():
        # torch has no tensors that cannot be written to; the kernel's page tables see to it here
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return torch.frombuffer(mapped, dtype=torch.uint8)
