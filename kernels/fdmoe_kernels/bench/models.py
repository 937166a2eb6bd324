"""The layers that are measured: shapes of public models with random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import RoutingRule
from fdmoe_kernels.tiles import Precision


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes and routing of one MoE layer: H hidden, I intermediate, E experts, K chosen per token."""

    hidden: int
    intermediate: int
    experts: int
    top_k: int
    renormalize: bool

    def random_layer(self, dtype: torch.dtype, device: torch.device | str) -> MoELayer:
        """Random weights, scaled so that logits, activations and outputs are of order 1."""

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, device=device, dtype=dtype).mul_(shape[-1] ** -0.5)

        return MoELayer(
            draw(self.experts, self.hidden) * 2,
            draw(self.experts, 2 * self.intermediate, self.hidden),
            draw(self.experts, self.hidden, self.intermediate),
            RoutingRule(self.top_k, self.renormalize),
        )


MODELS = {
    "qwen3-30b-a3b": Model(hidden=2048, intermediate=768, experts=128, top_k=8, renormalize=True),
    "mixtral-8x7b": Model(hidden=4096, intermediate=14336, experts=8, top_k=2, renormalize=True),
    "olmoe": Model(hidden=2048, intermediate=1024, experts=64, top_k=8, renormalize=False),
}
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of what type a layer is, and how its experts multiply."""

    dtype: torch.dtype
    precision: Precision = "ieee"


# what is called a dtype in options and rows
DTYPES = {
    "bfloat16": Numbers(torch.bfloat16),
    "float16": Numbers(torch.float16),
    "float32": Numbers(torch.float32),
    "float32-tf32x3": Numbers(torch.float32, "tf32x3"),
    "float32-tf32": Numbers(torch.float32, "tf32"),
}


def random_tokens(layer: MoELayer, tokens: int) -> torch.Tensor:
    """x [T, H], of order 1. Tokens that point into different directions spread over all experts, as trained routers
    make them do."""
    return torch.randn(tokens, layer.hidden_size, device=layer.device, dtype=layer.dtype)
