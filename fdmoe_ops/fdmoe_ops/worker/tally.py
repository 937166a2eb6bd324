"""From what the device counts by itself to the worker's count page: which layer's launches, how many tokens, how long.

All layers share one workspace, whose totals only grow: a layer's part of them is what came between two readings. They
are read when the layer changes and twice a second, by a copy that the next launch stands behind and that nobody waits
for; what a worker has not read when it dies is lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from fdmoe_kernels import Workspace
from fdmoe_watchdog.counts import CountPage

_READ_NS = 500_000_000


class Tally:
    """Counts for layers that are known by their indices. Made when the warm-up is over: what that computed is not
    counted. `synchronize` waits for the stream of the workspace's launches."""

    def __init__(self, page: CountPage, workspace: Workspace, synchronize: Callable[[], None]) -> None:
        self._page = page
        self._synchronize = synchronize
        self._tokens = workspace.expert_tokens()[: page.experts]
        self._bytes = workspace.bytes_moved()
        pinned = workspace.device.type == "cuda"
        self._tokens_here = torch.empty(page.experts, dtype=torch.int64, pin_memory=pinned)
        self._bytes_here = torch.empty((), dtype=torch.int64, pin_memory=pinned)
        self._counted, self._counted_bytes = self._tokens.cpu().clone(), int(self._bytes)
        self._layer, self._unread = 0, False
        self._owed: int | None = None
        self._read_at_ns = time.monotonic_ns()

    def before(self, layer: int, now_ns: int) -> None:
        """A fused launch of this layer comes next on the stream, where nothing runs now. `now_ns`: CLOCK_MONOTONIC."""
        self.settle()
        if self._unread and (layer != self._layer or now_ns - self._read_at_ns >= _READ_NS):
            self._read(now_ns)
        self._layer = layer

    def after(self, tokens: int, duration_ns: int) -> None:
        """That launch is done, and so is all that came before it on the stream."""
        self._page.ran("fused", tokens, duration_ns)
        self._unread = True

    def rest(self) -> None:
        """The worker has nothing to do: what is unread is read now."""
        self.settle()
        if self._unread:
            self._read(time.monotonic_ns())
            self._synchronize()
            self.settle()

    def _read(self, now_ns: int) -> None:
        self._tokens_here.copy_(self._tokens, non_blocking=True)
        self._bytes_here.copy_(self._bytes, non_blocking=True)
        self._owed, self._unread, self._read_at_ns = self._layer, False, now_ns

    def settle(self) -> None:
        """A reading that is here goes to the layer whose launches it ends; whatever was on the stream is done."""
        if self._owed is None:
            return
        moved = int(self._bytes_here)
        self._page.computed(self._owed, (self._tokens_here - self._counted).tolist(), moved - self._counted_bytes)
        self._counted.copy_(self._tokens_here)
        self._counted_bytes, self._owed = moved, None
