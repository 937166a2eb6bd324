"""What a layer has to do at least for a batch, and how long an H200 takes for that."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fdmoe_kernels.layer import MoELayer

# both measured on an H200: the fastest large bf16 matrix product, the fastest read
FLOP_PER_S = 790e12
BYTES_PER_S = 4300e9


@dataclass(frozen=True, slots=True)
class Work:
    """flop of one call, and the bytes of the weights that it touches."""

    flop: int
    weight_bytes: int

    @property
    def floor_us(self) -> float:
        """The shortest time that the arithmetic or the touched weights allow."""
        return max(self.flop / FLOP_PER_S, self.weight_bytes / BYTES_PER_S) * 1e6

    def tflops(self, latency_us: float) -> float:
        return self.flop / latency_us / 1e6

    def weight_gbps(self, latency_us: float) -> float:
        """GB of weights per second."""
        return self.weight_bytes / latency_us / 1e3


def touched_experts(layer: MoELayer, x: torch.Tensor) -> int:
    """How many experts the tokens of `x` choose: those with the largest logits."""
    logits = x.float() @ layer.router.float().T
    return int(torch.unique(torch.topk(logits, layer.routing.top_k).indices).numel())


def work_of(layer: MoELayer, x: torch.Tensor) -> Work:
    """The router and the experts that the tokens of `x` choose."""
    touched = touched_experts(layer, x)
    expert = 3 * layer.hidden_size * layer.intermediate_size
    router = layer.router.numel()
    return Work(
        flop=2 * x.shape[0] * (layer.routing.top_k * expert + router),
        weight_bytes=(touched * expert + router) * x.element_size(),
    )
