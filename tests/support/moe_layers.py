"""Layers, batches and transformers' own MoE blocks for the kernels' tests, and the places they run in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import transformers
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from fdmoe_kernels import MoELayer, RoutingRule

ARCHITECTURES = ("mixtral", "qwen3_moe", "olmoe")


@dataclass(frozen=True)
class Place:
    """Where a test runs. tolerance bounds ||y - reference|| / ||reference||; bf16's is the bar of the peers' table."""

    device: str
    dtype: torch.dtype
    tolerance: float
    token_counts: tuple[int, ...]


INTERPRETER = Place("cpu", torch.float32, 1e-5, (0, 1, 2, 3, 17, 64))
GPU = (
    Place("cuda", torch.float32, 1e-5, (0, 1, 2, 3, 17, 64, 129, 1000)),
    Place("cuda", torch.bfloat16, 6e-3, (0, 1, 2, 3, 17, 64, 129, 1000)),
    Place("cuda", torch.float16, 1e-3, (0, 1, 2, 3, 17, 64, 129, 1000)),
)


def random_layer(
    experts: int, hidden: int, intermediate: int, top_k: int, *, renormalize: bool = True, seed: int = 0,
    place: Place = INTERPRETER,
) -> MoELayer:  # fmt: skip
    """Weights scaled so that logits, activations and outputs are all of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        return values.to(device=place.device, dtype=place.dtype)

    return MoELayer(
        draw(experts, hidden) * 2,
        draw(experts, 2 * intermediate, hidden),
        draw(experts, hidden, intermediate),
        RoutingRule(top_k, renormalize),
    )


def random_tokens(layer: MoELayer, tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(tokens, layer.hidden_size, generator=generator)
    return x.to(device=layer.device, dtype=layer.dtype)


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    """||y - reference|| / ||reference||; 0 for two empty tensors, nan if either holds one."""
    if reference.numel() == 0 and y.shape == reference.shape:
        return 0.0
    return ((y.float() - reference.float()).norm() / reference.float().norm()).item()


def transformers_block(architecture: str, place: Place) -> tuple[torch.nn.Module, MoELayer]:
    """A block of transformers in float32 whose weights have the values of `place.dtype`, and our layer over them."""
    torch.manual_seed(ARCHITECTURES.index(architecture))
    if architecture == "mixtral":
        config = transformers.MixtralConfig(
            hidden_size=64, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2
        )
        block: torch.nn.Module = MixtralSparseMoeBlock(config)
        routing = RoutingRule(2, renormalize=True)
    elif architecture == "qwen3_moe":
        config = transformers.Qwen3MoeConfig(
            hidden_size=64, moe_intermediate_size=32, num_experts=16, num_experts_per_tok=4, norm_topk_prob=True
        )
        block, routing = Qwen3MoeSparseMoeBlock(config), RoutingRule(4, renormalize=True)
    else:
        config = transformers.OlmoeConfig(
            hidden_size=48, intermediate_size=40, num_experts=6, num_experts_per_tok=3, norm_topk_prob=False
        )
        block, routing = OlmoeSparseMoeBlock(config), RoutingRule(3, renormalize=False)
    with torch.no_grad():
        for parameter in block.parameters():
            values = torch.randn(parameter.shape) * 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(values.to(place.dtype))
    block = block.to(place.device).eval()
    to = {"device": place.device, "dtype": place.dtype}
    layer = MoELayer(
        block.gate.weight.detach().to(**to),
        block.experts.gate_up_proj.detach().to(**to),
        block.experts.down_proj.detach().to(**to),
        routing,
    )
    return block, layer
