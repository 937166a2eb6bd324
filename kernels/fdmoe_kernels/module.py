"""The layer as a torch module: for torch.compile, which takes the launch as one opaque operator."""

from __future__ import annotations

import itertools
import weakref

import torch

from fdmoe_kernels.fused import fused_moe
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing
from fdmoe_kernels.tiles import Precision
from fdmoe_kernels.workspace import Workspace

_modules: weakref.WeakValueDictionary[int, FusedMoE] = weakref.WeakValueDictionary()
_handles = itertools.count()


class FusedMoE(torch.nn.Module):
    """`fused_moe` over one layer and workspace: y [T, H] for x [T, H], of the layer's dtype and device.

    torch.compile takes it without a graph break, and CUDA graphs capture it. A routing made elsewhere may come with x;
    `precision` and `programs` are fused_moe's. An operator's arguments are tensors and numbers, so the module goes by a
    number of its own. Raises ValueError as fused_moe does, when it runs, and for a workspace that does not fit the
    layer.
    """

    def __init__(
        self, layer: MoELayer, workspace: Workspace, *, precision: Precision = "ieee", programs: int = 0
    ) -> None:
        super().__init__()
        if not workspace.fits(layer):
            raise ValueError(
                f"the workspace is for (E, S, H, I, K) = {workspace.shape}, {workspace.dtype} on {workspace.device}"
            )
        self.layer, self.workspace = layer, workspace
        self.precision: Precision = precision
        self.programs = programs
        self.handle = next(_handles)
        _modules[self.handle] = self

    def forward(self, x: torch.Tensor, routing: Routing | None = None) -> torch.Tensor:
        experts, weights = (None, None) if routing is None else (routing.experts, routing.weights)
        y: torch.Tensor = _fused_moe(x, experts, weights, self.handle)
        return y


@torch.library.custom_op("fdmoe::fused_moe", mutates_args=())
def _fused_moe(
    x: torch.Tensor, experts: torch.Tensor | None, weights: torch.Tensor | None, handle: int
) -> torch.Tensor:
    module = _modules[handle]
    routing = None if experts is None or weights is None else Routing(experts, weights)
    return fused_moe(
        x, module.layer, module.workspace, routing=routing, precision=module.precision, programs=module.programs
    )


@_fused_moe.register_fake
def _(
    x: torch.Tensor, experts: torch.Tensor | None, weights: torch.Tensor | None, handle: int  # noqa: ARG001
) -> torch.Tensor:  # fmt: skip
    return torch.empty_like(x)
