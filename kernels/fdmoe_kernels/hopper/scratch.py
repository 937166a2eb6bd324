"""Which layers the Hopper form takes, and the memory it needs besides what both forms share."""

from __future__ import annotations

import copy
import logging
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fdmoe_kernels.hardware import capturing, device_name, hopper_kernels_supported, multiprocessors
from fdmoe_kernels.hopper.driver import BuildError
from fdmoe_kernels.hopper.plan import Plan, sorted_rows, token_cut
from fdmoe_kernels.hopper.tiles import HOPPER, MOST_PORTABLE_TOKENS, most_portable_tokens
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.tuning.tables import pinned_form

if TYPE_CHECKING:
    from fdmoe_kernels.workspace import Workspace

_log = logging.getLogger(__name__)

MAX_EXPERTS = 576
MAX_TOP_K = 16
MAX_GROUPS = 32
MAX_GROUPED_EXPERTS = 304


def takes_shape(layer: MoELayer) -> bool:
    """Whether the Hopper form computes layers of this shape, type and device; the limits are device/params.cuh's."""
    return (
        hopper_kernels_supported(layer.device)
        and layer.dtype in (torch.bfloat16, torch.float16)
        # the copy engine's strides are multiples of 16 bytes, and gate and up rows take turns of eight
        and layer.hidden_size % 8 == 0
        and layer.intermediate_size % 8 == 0
        and layer.all_experts <= MAX_EXPERTS
        and layer.routing.top_k <= MAX_TOP_K
    )


def obstacle(layer: MoELayer) -> str | None:
    """What keeps the Hopper form from computing this layer, of a shape that it takes: of those that share a workspace
    each has its own rule and addresses. The limits are device/route.cuh's."""
    rule = layer.routing
    if rule.group_scores > 2:
        return f"group_scores is {rule.group_scores}; 1 or 2 are computed"
    if rule.groups > MAX_GROUPS:
        return f"groups is {rule.groups}; at most {MAX_GROUPS} are computed"
    if rule.groups > 1 and layer.experts > MAX_GROUPED_EXPERTS:
        return f"{layer.experts} experts are in groups; at most {MAX_GROUPED_EXPERTS} are computed"
    for name in ("router", "gate_up", "down"):
        address = layer.tensors[name].data_ptr()
        if address % 16:
            return f"{name} is at address {address:#x}; 16-byte alignment is needed"
    return None


@dataclass(frozen=True, slots=True)
class _Decision:
    """How a layer is computed, for as long as its tensors stay where they were."""

    plan: Plan | None
    addresses: tuple[int, ...]


class HopperScratch:
    """places  [T, K + S, 2] int32, each routed entry's expert and its place in the expert's list
    act     [rows, I], and sorted [rows, H], both in the order of the experts, each tile with its padded width
    """

    def __init__(self, layer: MoELayer, max_tokens: int) -> None:
        rows = sorted_rows(layer, max_tokens)
        dtype, device = layer.dtype, layer.device
        self.places = torch.empty(max_tokens * layer.entries_per_token, 2, dtype=torch.int32, device=device)
        self.act = torch.empty(rows, layer.intermediate_size, dtype=dtype, device=device)
        self.sorted = torch.empty(rows, layer.hidden_size, dtype=dtype, device=device)
        # a layer that nobody else keeps is let go, and its plan with it
        self._decisions: weakref.WeakKeyDictionary[MoELayer, _Decision] = weakref.WeakKeyDictionary()
        self._told: set[str] = set()
        self._takes_one = token_cut(layer) is not None
        self._multiprocessors = multiprocessors(device)
        share = layer.experts / layer.routing.top_k
        self._few = MOST_PORTABLE_TOKENS * share
        self._more = most_portable_tokens(device_name(device)) * share

    def shared(self) -> HopperScratch:
        """The same memory for another workspace, whose plans are its own."""
        other = copy.copy(self)
        other._decisions = weakref.WeakKeyDictionary()
        return other

    @property
    def fewest_tokens(self) -> int:
        """The smallest batch of several tokens that this form serves, if it may take the whole device."""
        return max(int(self._more) + 1, 2)

    def serves(self, tokens: int, programs: int = 0) -> bool:
        """Whether this form is the faster one for a batch of `tokens` tokens on so many CTAs (0: all that fit), or
        launches are held to it for tuning. On fewer CTAs than two a multiprocessor it is so from smaller batches on."""
        held_to = pinned_form()
        if held_to is not None:
            return held_to == HOPPER.name
        most = self._few if 0 < programs <= self._multiprocessors else self._more
        return tokens > most or (tokens == 1 and self._takes_one)

    def plan(self, layer: MoELayer, workspace: Workspace) -> Plan | None:
        """The layer's plan over the workspace that this is part of; None if the portable form must serve it, which is
        logged with the reason. Made when first asked for, and again when the layer's tensors have moved.

        Raises BuildError instead of None where the other form would be taken for this one: while launches are held to
        this form for tuning, and while a CUDA graph is captured, which would keep it.
        """
        decision, addresses = self._decisions.get(layer), layer.addresses
        if decision is None or decision.addresses != addresses:
            decision = self._decisions[layer] = _Decision(self._made(layer, workspace), addresses)
        return decision.plan

    def _made(self, layer: MoELayer, workspace: Workspace) -> Plan | None:
        reason = obstacle(layer)
        if reason is None:
            try:
                return Plan(layer, workspace, self)
            except BuildError as error:
                if pinned_form() is not None or capturing(layer.device):
                    raise
                reason = str(error)
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("the portable form serves instead of the Hopper form: %s", reason)
        return None

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.places, self.act, self.sorted))
