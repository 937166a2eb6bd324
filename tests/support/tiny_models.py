"""A tiny model of transformers for each architecture that can be served, and what its checkpoint must say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from fdmoe_kernels.activation import SILU, SwiGLU
from fdmoe_kernels.routing import RoutingRule, Scores
from fdmoe_ops.checkpoint import LayerShape

TINY = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 40,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model of transformers, and what its checkpoint must say."""

    make: Callable[[], transformers.PreTrainedModel]
    dtype: torch.dtype
    shape: LayerShape
    routing: RoutingRule
    moe_layers: tuple[int, ...]
    activation: SwiGLU = SILU


LATENT = TINY | {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8,
}  # fmt: skip
MODELS = {
    "MixtralForCausalLM": Model(
        lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**TINY, intermediate_size=24, num_local_experts=4, num_experts_per_tok=3)
        ),
        torch.bfloat16, LayerShape(32, 24, 4), RoutingRule(3, renormalize=True), (0, 1, 2),
    ),
    "Qwen3MoeForCausalLM": Model(
        lambda: transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(
                **(TINY | {"num_hidden_layers": 6}), moe_intermediate_size=16, intermediate_size=48, num_experts=6,
                num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=2, mlp_only_layers=[3],
            )
        ),
        torch.float32, LayerShape(32, 16, 6), RoutingRule(2, renormalize=True), (1, 5),
    ),
    "OlmoeForCausalLM": Model(
        lambda: transformers.OlmoeForCausalLM(
            transformers.OlmoeConfig(**TINY, intermediate_size=20, num_experts=5, num_experts_per_tok=2)
        ),
        torch.float16, LayerShape(32, 20, 5), RoutingRule(2, renormalize=False), (0, 1, 2),
    ),
    "Qwen2MoeForCausalLM": Model(
        lambda: transformers.Qwen2MoeForCausalLM(
            transformers.Qwen2MoeConfig(
                **TINY, moe_intermediate_size=16, shared_expert_intermediate_size=40, num_experts=6,
                num_experts_per_tok=3, mlp_only_layers=[0],
            )
        ),
        torch.bfloat16, LayerShape(32, 16, 6, shared=40), RoutingRule(3, renormalize=False), (1, 2),
    ),
    "Qwen3NextForCausalLM": Model(
        lambda: transformers.Qwen3NextForCausalLM(
            transformers.Qwen3NextConfig(
                **TINY, moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=6,
                num_experts_per_tok=3, head_dim=8, linear_key_head_dim=8, linear_value_head_dim=8,
                linear_num_key_heads=2, linear_num_value_heads=4,
            )
        ),
        torch.bfloat16, LayerShape(32, 16, 6, shared=16), RoutingRule(3, renormalize=True), (0, 1, 2),
    ),
    "DeepseekV2ForCausalLM": Model(
        lambda: transformers.DeepseekV2ForCausalLM(
            transformers.DeepseekV2Config(
                **LATENT, moe_intermediate_size=16, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3,
                first_k_dense_replace=1, topk_method="group_limited_greedy", n_group=4, topk_group=2,
                routed_scaling_factor=16.0,
            )
        ),
        torch.float32, LayerShape(32, 16, 8, shared=32),
        RoutingRule(3, renormalize=False, groups=4, top_groups=2, scaling=16.0), (1, 2),
    ),
    "DeepseekV3ForCausalLM": Model(
        lambda: transformers.DeepseekV3ForCausalLM(
            transformers.DeepseekV3Config(
                **LATENT, moe_intermediate_size=16, n_routed_experts=8, num_experts_per_tok=3,
                first_k_dense_replace=2, n_group=4, topk_group=2,
            )
        ),
        torch.bfloat16, LayerShape(32, 16, 8, shared=16),
        RoutingRule(3, True, Scores.SIGMOID, groups=4, top_groups=2, group_scores=2, scaling=2.5), (2,),
    ),
    "Glm4MoeForCausalLM": Model(
        lambda: transformers.Glm4MoeForCausalLM(
            transformers.Glm4MoeConfig(
                **TINY, moe_intermediate_size=16, n_routed_experts=6, num_experts_per_tok=2, norm_topk_prob=False,
                routed_scaling_factor=1.5,
            )
        ),
        torch.float16, LayerShape(32, 16, 6, shared=16), RoutingRule(2, False, Scores.SIGMOID, scaling=1.5), (1, 2),
    ),
    "GptOssForCausalLM": Model(
        lambda: transformers.GptOssForCausalLM(
            transformers.GptOssConfig(
                **TINY, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2, head_dim=8,
                swiglu_limit=3.0,
            )
        ),
        torch.bfloat16, LayerShape(32, 24, 5), RoutingRule(2, renormalize=True), (0, 1, 2), SwiGLU(1.702, 3.0, 1.0),
    ),
}  # fmt: skip
STORAGES = ("one file", "indexed shards", "shards without index", "stacked")


def save(model: transformers.PreTrainedModel, directory: Path, storage: str) -> None:
    # 100 MB hold a whole tiny model; 12 KB cut it, and its layers, into many files
    size = "12KB" if "shards" in storage else "100MB"
    model.save_pretrained(directory, max_shard_size=size, save_original_format=storage != "stacked")
    files = list(directory.glob("*.safetensors"))
    assert len(files) > 4 if "shards" in storage else len(files) == 1
    if storage == "shards without index":
        (directory / "model.safetensors.index.json").unlink()


def randomized(model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """transformers starts biases at zero, where a lost one would not be seen."""
    with torch.no_grad():
        for parameter in (*model.parameters(), *model.buffers()):
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model
