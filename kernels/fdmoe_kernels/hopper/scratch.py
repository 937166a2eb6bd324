"""Which layers the Hopper form takes, and the memory it needs besides what both forms share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fdmoe_kernels.hardware import hopper_kernels_supported, multiprocessors
from fdmoe_kernels.hopper.plan import Plan, sorted_rows
from fdmoe_kernels.hopper.tiles import FEWEST_TOKENS_PER_EXPERT, HOPPER, ROUTE_TOKENS
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.tuning.tables import pinned_form

if TYPE_CHECKING:
    from fdmoe_kernels.workspace import Workspace

MAX_EXPERTS = 576
MAX_TOP_K = 16
MAX_GROUPS = 32
MAX_GROUPED_EXPERTS = 304


def takes(layer: MoELayer) -> bool:
    """Whether the Hopper form computes this layer; the limits are those of device/params.cuh and device/route.cuh."""
    rule = layer.routing
    return (
        hopper_kernels_supported(layer.device)
        and layer.dtype in (torch.bfloat16, torch.float16)
        # the copy engine's strides are multiples of 16 bytes, and gate and up rows take turns of eight
        and layer.hidden_size % 8 == 0
        and layer.intermediate_size % 8 == 0
        and layer.all_experts <= MAX_EXPERTS
        and rule.top_k <= MAX_TOP_K
        and (rule.groups == 1 or (rule.groups <= MAX_GROUPS and layer.experts <= MAX_GROUPED_EXPERTS))
        and rule.group_scores <= 2
        and all(tensor.data_ptr() % 16 == 0 for tensor in (layer.router, layer.gate_up, layer.down))
    )


class HopperScratch:
    """logits  [parts, T, E] float32, the router's partial sums: room for `logit_rows` rows of E
    act     [rows, I], and sorted [rows, H], both in the order of the experts, each tile with its padded width
    """

    def __init__(self, layer: MoELayer, workspace: Workspace) -> None:
        tokens, rows = workspace.max_tokens, sorted_rows(layer, workspace.max_tokens)
        dtype, device = layer.dtype, layer.device
        # the router's parts are for small batches: the fewer tokens, the more parts
        self.logit_rows = max(tokens, ROUTE_TOKENS * multiprocessors(device))
        self.logits = torch.empty(self.logit_rows * layer.experts, dtype=torch.float32, device=device)
        self.act = torch.empty(rows, layer.intermediate_size, dtype=dtype, device=device)
        self.sorted = torch.empty(rows, layer.hidden_size, dtype=dtype, device=device)
        self._workspace = workspace
        self._plans: dict[int, Plan] = {}
        self._fewest_tokens = FEWEST_TOKENS_PER_EXPERT * layer.experts / layer.routing.top_k

    def serves(self, tokens: int) -> bool:
        """Whether this form is the faster one for a batch of `tokens` tokens, or launches are held to it for tuning."""
        held_to = pinned_form()
        return tokens > self._fewest_tokens if held_to is None else held_to == HOPPER.name

    def plan(self, layer: MoELayer) -> Plan:
        """The layer's plan, made at its first launch; it keeps the layer, so that its id stays its own."""
        plan = self._plans.get(id(layer))
        if plan is None:
            plan = self._plans[id(layer)] = Plan(layer, self._workspace, self)
        return plan

    @property
    def size_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.logits, self.act, self.sorted))
