"""Neighbours: other processes that take the device for themselves, a GPU in turns with us, a CPU on all its cores."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from fdmoe_kernels.bench.neighbour import Neighbour
from fdmoe_ops.devices import are_cpu


@contextlib.contextmanager
def busy_neighbours(device: str, seconds: float) -> Iterator[None]:
    """They are at work when this is entered, and multiply matrices for so long, or until it is left."""
    count = (os.cpu_count() or 1) if are_cpu((device,)) else 1
    with contextlib.ExitStack() as stack:
        neighbours = [stack.enter_context(Neighbour(device)) for _ in range(count)]
        for neighbour in neighbours:
            neighbour.start(seconds)
        yield
