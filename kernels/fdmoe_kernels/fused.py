"""The public op: one MoE layer in one kernel launch."""

from __future__ import annotations

import torch
import triton

from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import interpreted, multiprocessors
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.tiles import tiles_for
from fdmoe_kernels.workspace import Workspace


def fused_moe(
    x: torch.Tensor,
    layer: MoELayer,
    workspace: Workspace,
    *,
    out: torch.Tensor | None = None,
    programs: int = 0,
    fault: Fault = Fault.NONE,
) -> torch.Tensor:
    """Route, run the experts and combine, in one launch on the current stream.

    x        [T, H] contiguous, 16-byte aligned, dtype and device of the layer, T from 0 to workspace.max_tokens
    out      [T, H] like x, or None for a new tensor
    programs the number of CTAs, from 1 up; 0: what fills the device. Any number gives the same bits.

    Returns out [T, H]. T = 0 launches nothing. After a launch that was aborted, out is not defined: the page says so
    (Page.exit_of). Raises ValueError for anything else that does not fit, and names it.
    """
    layer.check_input(x)
    tokens = x.shape[0]
    if not workspace.fits(layer):
        raise ValueError(
            f"the workspace is for (E, H, I, K) = {workspace.shape}, {workspace.dtype} on {workspace.device}"
        )
    if tokens > workspace.max_tokens:
        raise ValueError(f"x has {tokens} tokens; the workspace is for at most {workspace.max_tokens}")
    if programs < 0:
        raise ValueError(f"programs is {programs}; 1 or more CTAs, or 0 for all, are allowed")
    if out is None:
        out = torch.empty_like(x)
    elif out.shape != x.shape or out.dtype != x.dtype or out.device != x.device or not out.is_contiguous():
        raise ValueError(f"out is {out.dtype} {tuple(out.shape)} on {out.device}; like x and contiguous is needed")
    for name, tensor in (("x", x), ("out", out)):
        # another alignment would be another compile, which must never happen beside a running kernel
        if tensor.data_ptr() % 16:
            raise ValueError(f"{name} is at address {tensor.data_ptr():#x}; 16-byte alignment is needed")
    if tokens == 0:
        return out
    # a faulty build is made once, for the smallest row of the table, which serves any token count
    tiles = tiles_for(layer, tokens if fault is Fault.NONE else 1)
    fill = multiprocessors(layer.device) * tiles.programs
    grid = programs or fill
    if workspace.page is not None:
        grid = min(grid, workspace.slots)
    kernel.moe_layer_kernel[(grid,)](
        x,
        layer.router,
        layer.gate_up,
        layer.down,
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
        K=layer.routing.top_k,
        RENORMALIZE=layer.routing.renormalize,
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
        PRECISION="ieee",
        POLL=1 if interpreted() else 64,
        BEATS=workspace.page is not None,
        FAULT=int(fault),
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    workspace.launches += 1
    return out
