"""A kernel that shows whether the device works at all, before anything is loaded onto it."""

from __future__ import annotations

import torch

from fdmoe_ops.worker.errors import DeviceBroken

_NUMBERS = 1 << 20


def run_trial(device: torch.device) -> None:
    """Fill, add up and read back a few megabytes. Raises DeviceBroken; one that hangs is the deadline's to find."""
    try:
        found = int(torch.arange(_NUMBERS, device=device).sum())
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise DeviceBroken(f"a trial kernel on {device} failed: {error}") from error
    expected = _NUMBERS * (_NUMBERS - 1) // 2
    if found != expected:
        raise DeviceBroken(f"a trial kernel on {device} found {found}; {expected} is right")
