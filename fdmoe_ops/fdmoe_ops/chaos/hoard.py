"""`python -m fdmoe_ops.chaos.hoard DEVICE`: takes the memory that is free on a GPU, and what comes free, until killed.

Says "full" once nothing is left.
"""

from __future__ import annotations

import sys
import time

import torch

from fdmoe_watchdog.child import die_with_parent

_LEAST_BYTES = 2 << 20
_MOST_BYTES = 1 << 30
_PAUSE_S = 0.001


def main() -> None:
    # nobody else would give the memory back
    die_with_parent()
    device = torch.device(sys.argv[1])
    held: list[torch.Tensor] = []
    size_bytes, full = _MOST_BYTES, False
    while True:
        try:
            held.append(torch.empty(size_bytes, dtype=torch.uint8, device=device))
            size_bytes = min(size_bytes * 2, _MOST_BYTES)
        except torch.OutOfMemoryError:
            if size_bytes > _LEAST_BYTES:
                size_bytes //= 2
                continue
            if not full:
                full = True
                print("full", flush=True)
            time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main()
