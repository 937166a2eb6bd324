"""The public op: one MoE layer in one kernel launch."""

from __future__ import annotations

import torch

from fdmoe_kernels import portable
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import capturing, family
from fdmoe_kernels.layer import MoELayer, check_output
from fdmoe_kernels.routing import Routing
from fdmoe_kernels.tiles import PRECISIONS, Precision
from fdmoe_kernels.workspace import Workspace

# more than any device runs at once (an H200 at most 132 * 32); the portable form multiplies it by 64 in 32 bits
MOST_PROGRAMS = 65536


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
    precision of the experts' products in a float32 layer: "ieee"; "tf32x3", on an NVIDIA device's tensor cores by three
              products of ten bits more each, as near to the exact result and several times as fast; or "tf32", by
              one. The router's are always IEEE, so that all choose the same experts
    out       [T, H] like x, or None for a new tensor
    programs  the number of CTAs, 1 to 65536; 0: what fills the device. All numbers with which the same form of the
              kernel serves (Workspace.form) give the same bits: on Hopper up to one a multiprocessor, and above it.
              With many tokens on Hopper they work in pairs: an odd number above 1 is one less.

    Returns out [T, H]. T = 0 launches nothing. After a launch that was aborted, out is not defined: the page says so
    (Page.exit_of). Where a device has a form of the kernel of its own and it cannot be built, the portable form serves
    and the reason is logged; Workspace.form tells which does.

    Raises ValueError for anything else that does not fit, and names it; so for a layer on the CPU without Triton's
    interpreter (TRITON_INTERPRET=1 before the first import of triton), and for bfloat16 in it. Raises BuildError where
    a build with a fault cannot be had, and where, during the capture of a CUDA graph, the device's own form turns out
    not to be.
    """
    layer.check_input(x)
    if routing is not None:
        routing.check(x.shape[0], layer.routing.top_k, layer.device)
    check_options(layer, workspace, precision=precision, programs=programs)
    tokens = x.shape[0]
    if tokens > workspace.max_tokens:
        raise ValueError(f"x has {tokens} tokens; the workspace is for at most {workspace.max_tokens}")
    if out is None:
        out = torch.empty_like(x)
    else:
        check_output(out, x)
    experts, weights = (None, None) if routing is None else (routing.experts, routing.weights)
    for name, tensor in (("x", x), ("out", out), ("routing.experts", experts), ("routing.weights", weights)):
        # another alignment would be another compile, which must never happen beside a running kernel
        if tensor is not None and tensor.data_ptr() % 16:
            raise ValueError(f"{name} is at address {tensor.data_ptr():#x}; 16-byte alignment is needed")
    if tokens == 0:
        return out
    plan = workspace.hopper_plan(layer, tokens, programs)
    if plan is not None:
        plan.launch(x, out, routing=routing, programs=programs, fault=fault)
    else:
        portable.launch(x, out, layer, workspace, routing=routing, precision=precision, programs=programs, fault=fault)
    if not capturing(workspace.device):
        workspace.launches += 1
    return out


def check_options(layer: MoELayer, workspace: Workspace, *, precision: Precision, programs: int) -> None:
    """Raises ValueError unless the layer can be launched over the workspace with these."""
    if precision not in PRECISIONS or (precision != "ieee" and layer.dtype != torch.float32):
        allowed = " or ".join(PRECISIONS) if layer.dtype == torch.float32 else "ieee"
        raise ValueError(f"precision is {precision}; {allowed} is allowed for {layer.dtype}")
    if precision == "tf32x3" and family() == "hip":
        raise ValueError("precision is tf32x3; ieee or tf32 is allowed on AMD devices, whose matrix cores take float32")
    workspace.check(layer)
    if not isinstance(programs, int) or not 0 <= programs <= MOST_PROGRAMS:
        raise ValueError(f"programs is {programs!r}; an int from 1 to {MOST_PROGRAMS} CTAs, or 0 for all, is allowed")
