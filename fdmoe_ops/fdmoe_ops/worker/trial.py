"""A kernel that shows whether the device works at all, before anything is loaded onto it."""

from __future__ import annotations

import torch

from fdmoe_ops.worker.errors import DeviceBroken

_NUMBERS = 1 << 20
# what torch's allocator of the CPU, CUDA's runtime and its driver say; only CUDA's allocator has a type for it
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


def run_trial(device: torch.device) -> None:
    """Fill, add up and read back a few megabytes. Raises DeviceBroken, and RuntimeError where somebody else has all the
    memory: that says nothing of the device. One that hangs is the deadline's to find."""
    try:
        found = int(torch.arange(_NUMBERS, device=device).sum())
    except RuntimeError as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise
        raise DeviceBroken(f"a trial kernel on {device} failed: {error}") from error
    expected = _NUMBERS * (_NUMBERS - 1) // 2
    if found != expected:
        raise DeviceBroken(f"a trial kernel on {device} found {found}; {expected} is right")
