"""The scratch memory of the one-launch kernel: allocated once, reused by every launch of its stream."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch

from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.hardware import multiprocessors
from fdmoe_kernels.hopper.plan import Plan, control_words
from fdmoe_kernels.hopper.scratch import HopperScratch, takes_shape
from fdmoe_kernels.hopper.tiles import ROUTE_TOKENS
from fdmoe_kernels.layer import MoELayer
from fdmoe_watchdog import page as beat_page

_SMALLEST_ROW_TILE = 16
_SMALLEST_ROUTE_TILE = 16


class Workspace:
    """Scratch memory for layers of one shape, on one stream: launches that share it must not overlap.

    `page` is a beat page as int64 words ([slots + 8, 8] flattened, on the layer's device or in pinned host memory);
    without one, nothing is written there and no host can end a launch: what remains are the looks of waiting CTAs at
    the device's own abort word. `slots` is how many CTAs may have one, if not as many as fit. `launches` counts the
    launches that run: the number of the next one is `launches + 1`. One that is captured into a CUDA graph does not run
    and is not counted; the graph's owner counts its replays here.

    Raises ValueError for a maximum of tokens that is no int, is below 1 or makes 2^31 entries, for a page that is not
    contiguous, not aligned to 16 bytes, on another device, or too small to hold one slot, and for a number of slots
    that the page has no room for.
    """

    def __init__(
        self, layer: MoELayer, max_tokens: int, *, page: torch.Tensor | None = None, slots: int | None = None
    ) -> None:
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens!r}; an int, at least 1, is needed")
        if max_tokens * layer.entries_per_token >= 2**31:
            raise ValueError(
                f"max_tokens is {max_tokens}, and each token has {layer.entries_per_token} entries; "
                "fewer than 2^31 in all are allowed"
            )
        self.shape = _shape(layer)
        self.dtype, self.device = layer.dtype, layer.device
        self.max_tokens = max_tokens
        self._take_page(page, slots)
        self.launches = 0
        experts, hidden, intermediate = layer.all_experts, layer.hidden_size, layer.intermediate_size
        entries = max_tokens * layer.entries_per_token
        device = layer.device
        words = kernel.COUNTS.value + experts + self.row_tiles_bound(max_tokens, _SMALLEST_ROW_TILE)
        words += math.ceil(max_tokens / _SMALLEST_ROUTE_TILE)
        words = max(words, control_words(layer, max_tokens))
        self.control = torch.zeros(words, dtype=torch.int32, device=device)
        self.totals = torch.zeros(kernel.ENTERED.value + experts, dtype=torch.int64, device=device)
        self.lists = torch.empty(experts * max_tokens, dtype=torch.int32, device=device)
        self.weights = torch.empty(entries, dtype=torch.float32, device=device)
        # the router's parts are for small batches: the fewer tokens, the more parts
        self.logit_rows = max(max_tokens, ROUTE_TOKENS * multiprocessors(device))
        self.logits = torch.empty(self.logit_rows * layer.experts, dtype=torch.float32, device=device)
        self.norms = torch.empty(max_tokens, dtype=torch.float32, device=device)
        self.hopper = HopperScratch(layer, max_tokens) if takes_shape(layer) else None
        if self.hopper is None:
            self.act = torch.empty(entries, intermediate, dtype=layer.dtype, device=device)
            self.part = torch.empty(entries, hidden, dtype=layer.dtype, device=device)
        else:  # one form or the other serves a launch
            self.act, self.part = self.hopper.act[:entries], self.hopper.sorted[:entries]

    def _take_page(self, page: torch.Tensor | None, slots: int | None) -> None:
        if page is not None:
            _check_page(page, self.device)
        room = 0 if page is None else page.numel() // beat_page.LINE_WORDS - beat_page.FIRST_SLOT
        if slots is not None and not (isinstance(slots, int) and 1 <= slots <= room):
            allowed = "none without a page" if page is None else f"1 to {room}"
            raise ValueError(f"slots is {slots!r}; {allowed} can be had")
        self.page = page
        self.slots = room if slots is None else slots

    def with_page(self, page: torch.Tensor | None) -> Workspace:
        """The same memory with another page, or none: launches of the two must not overlap. Two workspaces of their own
        differ by where their memory lies as well: one build took 1 % more or less in the second, on an H200.

        The device numbers the launches of both, and each counts its own: who uses the number keeps `launches` in step.
        Raises ValueError for the page as the constructor does.
        """
        other = copy.copy(self)
        other._take_page(page, None)
        other.hopper = None if self.hopper is None else self.hopper.shared()
        return other

    def row_tiles_bound(self, tokens: int, rows: int) -> int:
        """The most row tiles that `tokens` tokens can make, however they are routed."""
        experts, shared, _, _, top_k = self.shape
        entries = tokens * (top_k + shared)
        return entries // rows + min(experts + shared, entries)

    def fits(self, layer: MoELayer) -> bool:
        return (_shape(layer), layer.dtype, layer.device) == (self.shape, self.dtype, self.device)

    def check(self, layer: MoELayer) -> None:
        """Raises ValueError unless it fits the layer."""
        if not self.fits(layer):
            raise ValueError(
                f"the workspace is for (E, S, H, I, K) = {self.shape}, {self.dtype} on {self.device}; "
                f"the layer has {_shape(layer)}, {layer.dtype} on {layer.device}"
            )

    def hopper_plan(self, layer: MoELayer, tokens: int, programs: int = 0) -> Plan | None:
        """By which the Hopper form computes `tokens` tokens of the layer on so many CTAs (0: all that fit); None: the
        portable form does. It decides for each launch. The first time for a layer it compiles and loads;
        HopperScratch.plan says more."""
        if self.page is not None:
            programs = min(programs or self.slots, self.slots)
        if self.hopper is None or not self.hopper.serves(tokens, programs):
            return None
        return self.hopper.plan(layer, self)

    def form(self, layer: MoELayer, tokens: int, programs: int = 0) -> Literal["hopper", "portable"]:
        """Which form of the kernel serves `tokens` tokens of the layer on so many CTAs. As hopper_plan, it may
        compile."""
        return "portable" if self.hopper_plan(layer, tokens, programs) is None else "hopper"

    def expert_tokens(self) -> torch.Tensor:
        """Tokens that each expert has computed, the shared ones last: [E + S] int64 on the layer's device, over all
        launches that were not aborted. A view: later launches of the stream add to it."""
        return self.totals[kernel.ENTERED.value :]

    def bytes_moved(self) -> torch.Tensor:
        """Bytes moved by all launches that were not aborted: a 0-dimensional int64 on the layer's device, and a view.

        What the layer cannot do without, each once: per launch the router's weights, unless the routing was given, and
        the weights and biases of each expert that has a token; per entry, a token at one of its experts, the row of x
        read, the row of the activations written and read, and the row of the result written and read; per token the
        row of y written. Not counted: what caches or tile sizes add, the router's reading of x, and control words.
        """
        return self.totals[kernel.MOVED.value]

    @property
    def size_bytes(self) -> int:
        rows = self.act.nbytes + self.part.nbytes if self.hopper is None else self.hopper.size_bytes
        tensors = (self.control, self.totals, self.logits, self.lists, self.weights, self.norms)
        return rows + sum(tensor.nbytes for tensor in tensors)


def _check_page(page: torch.Tensor, device: torch.device) -> None:
    """The kernel writes whole lines to its bare address."""
    least = (beat_page.FIRST_SLOT + 1) * beat_page.LINE_WORDS
    if page.dtype != torch.int64 or page.numel() < least:
        raise ValueError(f"page is {page.dtype} of {page.numel()} words; int64 and at least {least} words are needed")
    if page.device != device and page.device.type != "cpu":
        raise ValueError(f"page is on {page.device}; {device} or pinned memory of the host is needed")
    if not page.is_contiguous() or page.data_ptr() % 16:
        raise ValueError(
            f"page has strides {page.stride()} and begins at address {page.data_ptr():#x}; contiguous words and "
            "16-byte alignment are needed"
        )


def _shape(layer: MoELayer) -> tuple[int, int, int, int, int]:
    """(E, S, H, I, K)"""
    return (
        layer.experts, layer.shared_experts, layer.hidden_size, layer.intermediate_size, layer.routing.top_k,
    )  # fmt: skip
