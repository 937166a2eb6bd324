"""Launches the portable form of the kernel: Triton, on any device that Triton has, and in its interpreter."""

from __future__ import annotations

import torch
import triton

from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import interpreted, multiprocessors
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing, Scores
from fdmoe_kernels.tiles import Precision, tiles_for
from fdmoe_kernels.workspace import Workspace


def launch(
    x: torch.Tensor,
    out: torch.Tensor,
    layer: MoELayer,
    workspace: Workspace,
    *,
    routing: Routing | None,
    precision: Precision,
    programs: int,
    fault: Fault,
) -> None:
    """One launch for x [T, H], T at least 1, into out [T, H]; fused.py has checked the arguments."""
    tokens = x.shape[0]
    # a faulty build is made once, for the smallest row of the table, which serves any token count
    tiles = tiles_for(layer, tokens if fault is Fault.NONE else 1, precision)
    rule = layer.routing
    fill = multiprocessors(layer.device) * tiles.programs
    grid = programs or fill
    if workspace.page is not None:
        grid = min(grid, workspace.slots)
    kernel.moe_layer_kernel[(grid,)](
        x,
        layer.router,
        layer.router_bias,
        layer.correction_bias,
        layer.gate_up,
        layer.gate_up_bias,
        layer.down,
        layer.down_bias,
        layer.shared_gate,
        None if routing is None else routing.experts,
        None if routing is None else routing.weights,
        out,
        workspace.lists,
        workspace.weights,
        workspace.norms,
        workspace.act,
        workspace.part,
        workspace.control,
        workspace.totals,
        workspace.totals if workspace.page is None else workspace.page,
        tokens,
        workspace.max_tokens,
        workspace.row_tiles_bound(tokens, tiles.rows),
        H=layer.hidden_size,
        I=layer.intermediate_size,
        E=layer.experts,
        K=rule.top_k,
        S=layer.shared_experts,
        SIGMOID=rule.scores is Scores.SIGMOID,
        RENORMALIZE=rule.renormalize,
        SCALING=rule.scaling,
        GROUPS=rule.groups,
        TOP_GROUPS=rule.top_groups,
        GROUP_SCORES=rule.group_scores,
        ALPHA=layer.activation.alpha,
        LIMIT=layer.activation.limit,
        UP_OFFSET=layer.activation.up_offset,
        EXPERT_LANES=triton.next_power_of_2(layer.all_experts),
        GROUP_LANES=triton.next_power_of_2(rule.groups),
        K_LANES=triton.next_power_of_2(rule.top_k),
        ROUTE_TOKENS=tiles.route_tokens,
        ROUTE_EXPERTS=max(16, triton.next_power_of_2(layer.experts)),
        ROUTE_DEPTH=tiles.route_depth,
        ROWS=tiles.rows,
        UP_COLUMNS=tiles.up_columns,
        UP_DEPTH=tiles.up_depth,
        DOWN_COLUMNS=tiles.down_columns,
        DOWN_DEPTH=tiles.down_depth,
        COMBINE_TOKENS=tiles.combine_tokens,
        COMBINE_COLUMNS=tiles.combine_columns,
        PRECISION=precision,
        POLL=1 if interpreted() else 64,
        BEATS=workspace.page is not None,
        FAULT=int(fault),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
