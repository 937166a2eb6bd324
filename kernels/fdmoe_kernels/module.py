"""The layer as a torch module: for torch.compile, which takes the launch as one opaque operator.

An operator's arguments are tensors and numbers. torch.compile makes a number part of what it compiles, and gives up
after eight modules that differ in it alone; what differs between tensors is not compiled in. So a module goes by a
small tensor of its own, its key: by the address, which nobody has to wait for, and which CUDA graphs keep, as it is a
buffer's; or by the number in it, where somebody has made a copy.
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Callable

import torch

from fdmoe_kernels.fused import check_options, fused_moe
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing
from fdmoe_kernels.tiles import Precision
from fdmoe_kernels.workspace import Workspace

_numbers = itertools.count()
_by_number: weakref.WeakValueDictionary[int, FusedMoE] = weakref.WeakValueDictionary()
_by_address: weakref.WeakValueDictionary[int, FusedMoE] = weakref.WeakValueDictionary()


class FusedMoE(torch.nn.Module):
    """`fused_moe` over one layer and workspace: y [T, H] for x [T, H], of the layer's dtype and device.

    torch.compile takes it without a graph break, and CUDA graphs capture it. A routing made elsewhere may come with x;
    `precision` and `programs` are fused_moe's. Layers of one shape share what is compiled. A copy has weights of its
    own and the same workspace. `to` and its like move nothing: the layer stays where it is. Raises ValueError as
    fused_moe does: for a workspace, `precision` or `programs` that does not fit when it is made, for all else when it
    runs.
    """

    key: torch.Tensor

    def __init__(
        self, layer: MoELayer, workspace: Workspace, *, precision: Precision = "ieee", programs: int = 0
    ) -> None:
        super().__init__()
        check_options(layer, workspace, precision=precision, programs=programs)
        self.layer, self.workspace = layer, workspace
        self.precision: Precision = precision
        self.programs = programs
        number = next(_numbers)
        self.register_buffer("key", torch.tensor(number, device=layer.device), persistent=False)
        _by_number[number] = _by_address[self.key.data_ptr()] = self

    def forward(self, x: torch.Tensor, routing: Routing | None = None) -> torch.Tensor:
        experts, weights = (None, None) if routing is None else (routing.experts, routing.weights)
        y: torch.Tensor = _fused_moe(x, experts, weights, self.key)
        return y

    def __deepcopy__(self, memo: dict[int, object]) -> FusedMoE:
        layer = copy.deepcopy(self.layer, memo)
        return FusedMoE(layer, self.workspace, precision=self.precision, programs=self.programs)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> FusedMoE:  # noqa: ARG002
        return self


@torch.library.custom_op("fdmoe::fused_moe", mutates_args=())
def _fused_moe(
    x: torch.Tensor, experts: torch.Tensor | None, weights: torch.Tensor | None, key: torch.Tensor
) -> torch.Tensor:
    module = _by_address.get(key.data_ptr()) or _by_number[int(key)]
    routing = None if experts is None or weights is None else Routing(experts, weights)
    return fused_moe(
        x, module.layer, module.workspace, routing=routing, precision=module.precision, programs=module.programs
    )


@_fused_moe.register_fake
def _(
    x: torch.Tensor, experts: torch.Tensor | None, weights: torch.Tensor | None, key: torch.Tensor  # noqa: ARG001
) -> torch.Tensor:  # fmt: skip
    return torch.empty_like(x)
