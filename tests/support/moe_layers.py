"""Layers, batches and transformers' own MoE blocks for the kernels' tests, and the places they run in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import transformers
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextSparseMoeBlock

from fdmoe_kernels import MoELayer, RoutingRule, Scores, SwiGLU


@dataclass(frozen=True)
class Place:
    """Where a test runs. tolerance bounds ||y - reference|| / ||reference||; bf16's is the bar of the peers' table."""

    device: str
    dtype: torch.dtype
    tolerance: float
    token_counts: tuple[int, ...]


INTERPRETER = Place("cpu", torch.float32, 1e-5, (0, 1, 2, 3, 17, 64))
HALF_INTERPRETER = Place("cpu", torch.float16, 1e-3, (1, 17))
GPU = (
    Place("cuda", torch.float32, 1e-5, (0, 1, 2, 3, 17, 64, 129, 1000)),
    Place("cuda", torch.bfloat16, 6e-3, (0, 1, 2, 3, 17, 64, 129, 1000)),
    Place("cuda", torch.float16, 1e-3, (0, 1, 2, 3, 17, 64, 129, 1000)),
)


def random_layer(
    experts: int, hidden: int, intermediate: int, top_k: int, *, renormalize: bool = True, seed: int = 0,
    place: Place = INTERPRETER, routing: RoutingRule | None = None, shared: int = 0,
) -> MoELayer:  # fmt: skip
    """Weights scaled so that logits, activations and outputs are all of order 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=generator) / shape[-1] ** 0.5
        return values.to(device=place.device, dtype=place.dtype)

    return MoELayer(
        draw(experts, hidden) * 2,
        draw(experts + shared, 2 * intermediate, hidden),
        draw(experts + shared, hidden, intermediate),
        routing or RoutingRule(top_k, renormalize),
        shared_experts=shared,
    )


def with_everything(layer: MoELayer, *, seed: int = 0) -> MoELayer:
    """The layer with biases of order 1, a gate before its shared experts, and a clamped activation."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device=layer.device, dtype=layer.dtype)

    return replace(
        layer,
        activation=SwiGLU(1.702, 1.0, 1.0),
        router_bias=draw(layer.experts),
        correction_bias=(0.2 * draw(layer.experts)).float(),
        gate_up_bias=draw(layer.all_experts, 2 * layer.intermediate_size),
        down_bias=draw(layer.all_experts, layer.hidden_size),
        shared_gate=draw(layer.hidden_size) / layer.hidden_size**0.5 if layer.shared_experts else None,
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


# hidden 64, intermediate 32; a limit of the activation that a good part of the values reaches
_SIZES = {"hidden_size": 64, "moe_intermediate_size": 32}
_BLOCKS: dict[str, tuple[Callable[[], torch.nn.Module], RoutingRule]] = {
    "mixtral": (
        lambda: MixtralSparseMoeBlock(
            transformers.MixtralConfig(
                hidden_size=64, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2
            )
        ),
        RoutingRule(2, renormalize=True),
    ),
    "qwen3_moe": (
        lambda: Qwen3MoeSparseMoeBlock(
            transformers.Qwen3MoeConfig(**_SIZES, num_experts=16, num_experts_per_tok=4, norm_topk_prob=True)
        ),
        RoutingRule(4, renormalize=True),
    ),
    "olmoe": (
        lambda: OlmoeSparseMoeBlock(
            transformers.OlmoeConfig(
                hidden_size=48, intermediate_size=40, num_experts=6, num_experts_per_tok=3, norm_topk_prob=False
            )
        ),
        RoutingRule(3, renormalize=False),
    ),
    "qwen2_moe": (
        lambda: Qwen2MoeSparseMoeBlock(
            transformers.Qwen2MoeConfig(
                **_SIZES, num_experts=12, num_experts_per_tok=4, shared_expert_intermediate_size=72
            )
        ),
        RoutingRule(4, renormalize=False),
    ),
    "qwen3_next": (
        lambda: Qwen3NextSparseMoeBlock(
            transformers.Qwen3NextConfig(
                **_SIZES, num_experts=20, num_experts_per_tok=10, shared_expert_intermediate_size=32
            )
        ),
        RoutingRule(10, renormalize=True),
    ),
    "deepseek_v2": (
        lambda: DeepseekV2Moe(
            transformers.DeepseekV2Config(
                **_SIZES, num_attention_heads=4, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=3,
                topk_method="group_limited_greedy", n_group=4, topk_group=2, routed_scaling_factor=4.0,
            )
        ),
        RoutingRule(3, renormalize=False, groups=4, top_groups=2, scaling=4.0),
    ),
    "deepseek_v3": (
        lambda: DeepseekV3MoE(
            transformers.DeepseekV3Config(
                **_SIZES, n_routed_experts=20, n_shared_experts=1, num_experts_per_tok=4, n_group=4, topk_group=2
            )
        ),
        RoutingRule(
            4, renormalize=True, scores=Scores.SIGMOID, groups=4, top_groups=2, group_scores=2, scaling=2.5
        ),
    ),
    "glm4_moe": (
        lambda: Glm4MoeMoE(
            transformers.Glm4MoeConfig(**_SIZES, n_routed_experts=10, num_experts_per_tok=3)
        ),
        RoutingRule(3, renormalize=True, scores=Scores.SIGMOID),
    ),
    "gpt_oss": (
        lambda: GptOssMLP(
            transformers.GptOssConfig(
                hidden_size=72, intermediate_size=40, num_local_experts=6, num_experts_per_tok=4, swiglu_limit=1.5
            )
        ),
        RoutingRule(4, renormalize=True),
    ),
    # as DeepSeek-V2-Lite has it: no groups, whatever their numbers say
    "deepseek_v2_greedy": (
        lambda: DeepseekV2Moe(
            transformers.DeepseekV2Config(
                **_SIZES, num_attention_heads=4, n_routed_experts=12, n_shared_experts=2, num_experts_per_tok=5,
                topk_method="greedy", n_group=4, topk_group=1, routed_scaling_factor=2.5,
            )
        ),
        RoutingRule(5, renormalize=False, scaling=2.5),
    ),
}  # fmt: skip
ARCHITECTURES = tuple(_BLOCKS)

Block = Callable[[torch.Tensor], torch.Tensor]


def transformers_block(architecture: str, place: Place) -> tuple[Block, MoELayer]:
    """A block of transformers in float32 whose weights have the values of `place.dtype`, as a function of x [T, H], and
    our layer over them."""
    torch.manual_seed(ARCHITECTURES.index(architecture))
    make, routing = _BLOCKS[architecture]
    block = make()
    with torch.no_grad():
        for parameter in block.parameters():
            values = torch.randn(parameter.shape) * 1.5 / parameter.shape[-1] ** 0.5
            parameter.copy_(values.to(place.dtype))
        for buffer in block.buffers():
            buffer.copy_(torch.randn(buffer.shape) * 0.2)
    block = block.to(place.device).eval()

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = block(x[None])
        return (y[0] if isinstance(y, tuple) else y)[0]

    return run, layer_of_block(block, routing, place)


def layer_of_block(block: torch.nn.Module, routing: RoutingRule, place: Place) -> MoELayer:
    """Our layer over the weights of a block of transformers, in the dtype and on the device of `place`."""
    to = {"device": place.device, "dtype": place.dtype}
    tensors = {name: tensor.detach() for name, tensor in (*block.named_parameters(), *block.named_buffers())}
    if "router.weight" in tensors:  # gpt-oss: x @ weight, and the rows of gate and up by turns
        gate_up, bias = tensors["experts.gate_up_proj"].mT, tensors["experts.gate_up_proj_bias"]
        return MoELayer.pack(
            tensors["router.weight"], list(gate_up[:, ::2]), list(gate_up[:, 1::2]),
            list(tensors["experts.down_proj"].mT), routing, **to,
            activation=SwiGLU(1.702, block.experts.limit, 1.0), router_bias=tensors["router.bias"],
            gate_bias=bias[:, ::2], up_bias=bias[:, 1::2], down_bias=tensors["experts.down_proj_bias"],
        )  # fmt: skip
    gate_up, down = tensors["experts.gate_up_proj"], tensors["experts.down_proj"]
    shared = next((name for name in ("shared_expert", "shared_experts") if hasattr(block, name)), None)
    if shared is None:
        return MoELayer(tensors["gate.weight"].to(**to), gate_up.to(**to), down.to(**to), routing)
    gates, ups = gate_up.chunk(2, dim=1)
    return MoELayer.pack(
        tensors["gate.weight"], list(gates), list(ups), list(down), routing, **to,
        correction_bias=tensors.get("gate.e_score_correction_bias"),
        shared=tuple(tensors[f"{shared}.{name}_proj.weight"] for name in ("gate", "up", "down")),
        shared_gate=tensors.get("shared_expert_gate.weight"),
    )  # fmt: skip
