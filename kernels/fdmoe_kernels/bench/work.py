"""What a layer has to do at least for a batch, and how long an H200 takes for that."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fdmoe_kernels.bench.models import Numbers
from fdmoe_kernels.layer import MoELayer

# both measured on an H200: the fastest large bf16 matrix product, the fastest read
FLOP_PER_S = 790e12
BYTES_PER_S = 4300e9
# float32: tensor cores take half of bf16's rate, by NVIDIA's data sheet and so here, and three products a time with
# tf32x3; IEEE is 132 multiprocessors x 128 units x 2 at 1.98 GHz, the data sheet's 67e12
_FLOAT32_FLOP_PER_S = {"tf32": FLOP_PER_S / 2, "tf32x3": FLOP_PER_S / 6, "ieee": 67e12}


@dataclass(frozen=True, slots=True)
class Work:
    """flop of one call, the bytes of the weights that it touches, and the chip's rate in this arithmetic."""

    flop: int
    weight_bytes: int
    flop_per_s: float

    @property
    def floor_us(self) -> float:
        """The shortest time that the arithmetic or the touched weights allow."""
        return max(self.flop / self.flop_per_s, self.weight_bytes / BYTES_PER_S) * 1e6

    def tflops(self, latency_us: float) -> float:
        return self.flop / latency_us / 1e6

    def weight_gbps(self, latency_us: float) -> float:
        """GB of weights per second."""
        return self.weight_bytes / latency_us / 1e3


def touched_experts(layer: MoELayer, x: torch.Tensor) -> int:
    """How many experts the tokens of `x` choose: those with the largest logits."""
    logits = x.float() @ layer.router.float().T
    return int(torch.unique(torch.topk(logits, layer.routing.top_k).indices).numel())


def flop_per_s(numbers: Numbers) -> float:
    return _FLOAT32_FLOP_PER_S[numbers.precision] if numbers.dtype == torch.float32 else FLOP_PER_S


def work_of(layer: MoELayer, x: torch.Tensor, numbers: Numbers) -> Work:
    """The router and the experts that the tokens of `x` choose."""
    touched = touched_experts(layer, x)
    expert = 3 * layer.hidden_size * layer.intermediate_size
    router = layer.router.numel()
    return Work(
        flop=2 * x.shape[0] * (layer.routing.top_k * expert + router),
        weight_bytes=(touched * expert + router) * x.element_size(),
        flop_per_s=flop_per_s(numbers),
    )
