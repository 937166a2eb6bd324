"""One MoE layer: its weights as the kernels want them, and its routing rule.

Legend of all shapes in this package: T tokens, E experts, K chosen per token, H hidden size, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How router logits become experts and weights: softmax over all E logits, the K largest, and their weights
    divided by their sum if `renormalize` (Mixtral always; Qwen3-MoE and OLMoE by `norm_topk_prob`)."""

    top_k: int
    renormalize: bool

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; at least 1 expert is chosen per token")


@dataclass(frozen=True, slots=True)
class MoELayer:
    """The weights of one SwiGLU MoE layer, contiguous, of one dtype, on one device.

    router  [E, H]      logits = x @ router^T
    gate_up [E, 2I, H]  rows 0..I-1 of an expert are its gate projection, rows I..2I-1 its up projection
    down    [E, H, I]
    y = sum over the chosen experts e of weight_e * (silu(x @ gate_e^T) * (x @ up_e^T)) @ down_e^T

    This is transformers' own layout, so its modules can lend their parameters without a copy. Raises ValueError when a
    shape, dtype or device does not fit the others.
    """

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    routing: RoutingRule

    def __post_init__(self) -> None:
        if self.router.ndim != 2 or self.gate_up.ndim != 3 or self.down.ndim != 3:
            raise ValueError(
                "router, gate_up and down have shapes "
                f"{tuple(self.router.shape)}, {tuple(self.gate_up.shape)}, {tuple(self.down.shape)}; "
                "[E, H], [E, 2I, H] and [E, H, I] are needed"
            )
        experts, hidden = self.router.shape
        intermediate = self.down.shape[2]
        for name, tensor, shape in (
            ("gate_up", self.gate_up, (experts, 2 * intermediate, hidden)),
            ("down", self.down, (experts, hidden, intermediate)),
        ):
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; router [{experts}, {hidden}] and down "
                    f"[.., .., {intermediate}] ask for {shape}"
                )
        for name, tensor in (("router", self.router), ("gate_up", self.gate_up), ("down", self.down)):
            if tensor.dtype not in DTYPES or tensor.dtype != self.gate_up.dtype:
                raise ValueError(f"{name} is {tensor.dtype}; all weights are of one of {DTYPES}")
            if tensor.device != self.gate_up.device:
                raise ValueError(f"{name} is on {tensor.device}; gate_up is on {self.gate_up.device}")
            if not tensor.is_contiguous():
                raise ValueError(f"{name} has strides {tensor.stride()}; contiguous weights are needed")
        if self.routing.top_k > experts:
            raise ValueError(f"top_k is {self.routing.top_k}; the layer has {experts} experts")

    @classmethod
    def pack(
        cls,
        router: torch.Tensor,
        gates: Sequence[torch.Tensor],
        ups: Sequence[torch.Tensor],
        downs: Sequence[torch.Tensor],
        routing: RoutingRule,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> MoELayer:
        """Copy per-expert weights (gate and up [I, H], down [H, I]) one by one into the packed layout on `device`."""
        experts, (intermediate, hidden) = len(gates), gates[0].shape
        gate_up = torch.empty(experts, 2 * intermediate, hidden, device=device, dtype=dtype)
        down = torch.empty(experts, hidden, intermediate, device=device, dtype=dtype)
        for expert, (gate, up, projection) in enumerate(zip(gates, ups, downs, strict=True)):
            gate_up[expert, :intermediate].copy_(gate)
            gate_up[expert, intermediate:].copy_(up)
            down[expert].copy_(projection)
        return cls(router.to(device=device, dtype=dtype, copy=True), gate_up, down, routing)

    @property
    def experts(self) -> int:
        return self.router.shape[0]

    @property
    def hidden_size(self) -> int:
        return self.router.shape[1]

    @property
    def intermediate_size(self) -> int:
        return self.down.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.gate_up.dtype

    @property
    def device(self) -> torch.device:
        return self.gate_up.device

    def check_input(self, x: torch.Tensor) -> None:
        """Raises ValueError unless `x` is [T, H], contiguous, and of the weights' dtype and device."""
        if x.ndim != 2 or x.shape[1] != self.hidden_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; [T, {self.hidden_size}] is needed")
        if x.dtype != self.dtype or x.device != self.device:
            raise ValueError(f"x is {x.dtype} on {x.device}; the weights are {self.dtype} on {self.device}")
        if not x.is_contiguous():
            raise ValueError(f"x has strides {x.stride()}; a contiguous [T, {self.hidden_size}] is needed")
