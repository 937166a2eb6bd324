"""The public op: one MoE layer in one kernel launch."""

from __future__ import annotations

import torch
import triton

from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import interpreted, multiprocessors
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing, Scores
from fdmoe_kernels.tiles import PRECISIONS, Precision, tiles_for
from fdmoe_kernels.workspace import Workspace


def fused_moe(
    x: torch.Tensor,
    layer: MoELayer,
    workspace: Workspace,
    *,
    routing: Routing | None = None,
    precision: Precision = "ieee",
    out: torch.Tensor | None = None,
    programs: int = 0,
    fault: Fault = Fault.NONE,
) -> torch.Tensor:
    """Route, run the experts and combine, in one launch on the current stream.

    x         [T, H] contiguous, 16-byte aligned, dtype and device of the layer, T from 0 to workspace.max_tokens
    routing   experts and weights of each token, 16-byte aligned; None: the layer's router chooses
    precision of the experts' products in a float32 layer: "ieee", or "tf32" with tensor cores. The router's are always
              IEEE, so that both choose the same experts
    out       [T, H] like x, or None for a new tensor
    programs  the number of CTAs, from 1 up; 0: what fills the device. Any number gives the same bits.

    Returns out [T, H]. T = 0 launches nothing. After a launch that was aborted, out is not defined: the page says so
    (Page.exit_of). Raises ValueError for anything else that does not fit, and names it.
    """
    layer.check_input(x)
    if routing is not None:
        routing.check(x.shape[0], layer.routing.top_k, layer.device)
    if precision not in PRECISIONS or (precision != "ieee" and layer.dtype != torch.float32):
        allowed = " or ".join(PRECISIONS) if layer.dtype == torch.float32 else "ieee"
        raise ValueError(f"precision is {precision}; {allowed} is allowed for {layer.dtype}")
    tokens = x.shape[0]
    if not workspace.fits(layer):
        raise ValueError(
            f"the workspace is for (E, S, H, I, K) = {workspace.shape}, {workspace.dtype} on {workspace.device}"
        )
    if tokens > workspace.max_tokens:
        raise ValueError(f"x has {tokens} tokens; the workspace is for at most {workspace.max_tokens}")
    if programs < 0:
        raise ValueError(f"programs is {programs}; 1 or more CTAs, or 0 for all, are allowed")
    if out is None:
        out = torch.empty_like(x)
    elif out.shape != x.shape or out.dtype != x.dtype or out.device != x.device or not out.is_contiguous():
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)} on {out.device}; like x and contiguous is needed")
    experts, weights = (None, None) if routing is None else (routing.experts, routing.weights)
    for name, tensor in (("x", x), ("out", out), ("routing.experts", experts), ("routing.weights", weights)):
        # another alignment would be another compile, which must never happen beside a running kernel
        if tensor is not None and tensor.data_ptr() % 16:
            raise ValueError(f"{name} is at address {tensor.data_ptr():#x}; 16-byte alignment is needed")
    if tokens == 0:
        return out
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
        experts,
        weights,
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
    workspace.launches += 1
    return out
