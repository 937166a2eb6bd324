"""Every question about the hardware is asked here."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import platform
from typing import Literal

import torch
import triton
import triton.language as tl

Family = Literal["cuda", "hip", "interpreter"]

_log = logging.getLogger(__name__)


def interpreted() -> bool:
    """Triton runs kernels in its interpreter, on the CPU, one program after another.

    TRITON_INTERPRET=1 makes it so only where it is set before the first import of triton: each function of Triton's own
    library, such as tl.sigmoid, is then made what it stays. Set later, no kernel that calls one runs.
    """
    return not isinstance(tl.sigmoid, triton.JITFunction)


def family() -> Family:
    """Which part of the tuning table this process's kernels take."""
    if interpreted():
        return "interpreter"
    return "hip" if torch.version.hip else "cuda"


@functools.cache
def device_name(device: torch.device) -> str:
    """What the maker calls a device; tuning tables are chosen by it, and results name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores"


def software_versions() -> str:
    """Of Python, torch and Triton, as results name them."""
    return f"python {platform.python_version()} torch {torch.__version__} triton {triton.__version__}"


def power_w(device: torch.device) -> float | None:
    """What a CUDA device's board takes, W, the mean of about the last second; None for other devices, without
    nvidia-ml-py, and where NVML does not tell."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        return torch.cuda.power_draw(device) / 1e3
    except ImportError:
        return None
    except (pynvml.NVMLError, RuntimeError) as error:
        _log.info("the power of %s is not known: %s", device, error)
        return None


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device (one CTA each fills it); 2 for the interpreter: enough to have two
    programs share a launch, and each costs a few milliseconds there."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2


@functools.cache
def hopper_kernels_supported(device: torch.device) -> bool:
    """The Hopper form of the kernel runs here: compute capability 9.0, and cuda.bindings, which torch's CUDA build
    brings, to compile and launch it. Where only that package is missing, it is logged once."""
    if device.type != "cuda" or torch.version.hip is not None or torch.cuda.get_device_capability(device) != (9, 0):
        return False
    if not _cuda_bindings_installed():
        _log.warning("the portable form serves instead of the Hopper form: the package cuda-bindings is not installed")
        return False
    return True


def _cuda_bindings_installed() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # there is no package `cuda` for it to be in
        return False


def capturing(device: torch.device) -> bool:
    """What is launched on the device's current stream is captured into a CUDA graph, and does not run."""
    if device.type != "cuda":
        return False
    if device.index is None or device.index == torch.cuda.current_device():
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def shared_bytes_per_cta(device: torch.device) -> int:
    """The most shared memory one CTA may use; without a limit in the interpreter."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)  # type: ignore[attr-defined]
    return 1 << 30


@functools.cache
def grouped_mm_supported(device: torch.device, dtype: torch.dtype) -> bool:
    """torch's grouped matrix product runs here: for bfloat16 on CUDA, from compute capability 8.0 on."""
    return (
        device.type == "cuda"
        and dtype == torch.bfloat16
        and hasattr(torch.nn.functional, "grouped_mm")
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )
