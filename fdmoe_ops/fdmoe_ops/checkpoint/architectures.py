"""The architectures that can be served: a row for each says how its config.json and its tensors are named.

Names, defaults and rules are those of transformers 5.23: configuration_*.py, modeling_*.py and, for the names of
tensors in published checkpoints, conversion_mapping.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fdmoe_kernels.activation import SwiGLU
from fdmoe_ops.checkpoint import rules
from fdmoe_ops.checkpoint.config_file import ConfigFile, Key
from fdmoe_ops.checkpoint.layouts import Interleaved, Layout, PerExpert, Router, Stacked

HIDDEN_ACT = Key("hidden_act", "silu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A row of the table. The first layout is the one of published checkpoints."""

    name: str
    layers: Key[int]
    hidden: Key[int]
    intermediate: Key[int]
    experts: Key[int]
    top_k: Key[int | None]
    routing: rules.Routing
    moe_layers: Callable[[ConfigFile, int], tuple[int, ...]]
    layouts: tuple[Layout, ...]
    shared: Callable[[ConfigFile, int], int] = rules.nothing_shared
    activation: Callable[[ConfigFile], SwiGLU] = rules.silu


MLP = "model.layers.{layer}.mlp."


def per_expert(router: Router) -> PerExpert:
    """Experts as they are published by most."""
    expert = MLP + "experts.{expert}."
    return PerExpert(router, expert + "gate_proj.weight", expert + "up_proj.weight", expert + "down_proj.weight")


def stacked(router: Router) -> Stacked:
    """Experts as the modules of transformers 5 hold them."""
    return Stacked(router, MLP + "experts.gate_up_proj", MLP + "experts.down_proj")


def projections(expert: str) -> tuple[str, str, str]:
    return (f"{MLP}{expert}.gate_proj.weight", f"{MLP}{expert}.up_proj.weight", f"{MLP}{expert}.down_proj.weight")


GATE = Router(MLP + "gate.weight")
PLAIN = (per_expert(GATE), stacked(GATE))
_GATED = Router(
    MLP + "gate.weight", shared=projections("shared_expert"), shared_gate=MLP + "shared_expert_gate.weight"
)  # fmt: skip
QWEN_SHARED = (per_expert(_GATED), stacked(_GATED))
_SHARED = Router(MLP + "gate.weight", shared=projections("shared_experts"))
SHARED = (per_expert(_SHARED), stacked(_SHARED))
_CORRECTED = Router(
    MLP + "gate.weight", correction_bias=MLP + "gate.e_score_correction_bias", shared=projections("shared_experts")
)
CORRECTED = (per_expert(_CORRECTED), stacked(_CORRECTED))

_ROWS = (
    Architecture(
        name="MixtralForCausalLM",
        layers=Key("num_hidden_layers", 32),
        hidden=Key("hidden_size", 4096),
        intermediate=Key("intermediate_size", 14336),
        experts=Key("num_local_experts", 8, alias="num_experts"),
        top_k=Key("num_experts_per_tok", 2),
        routing=rules.softmax(renormalize=True),
        moe_layers=rules.every_layer,
        layouts=(
            PerExpert(
                Router("model.layers.{layer}.block_sparse_moe.gate.weight"),
                gate="model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
                up="model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
                down="model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
            ),
            stacked(GATE),
        ),
    ),
    Architecture(
        name="Qwen3MoeForCausalLM",
        layers=Key("num_hidden_layers", 24),
        hidden=Key("hidden_size", 2048),
        intermediate=Key("moe_intermediate_size", 768),
        # published files say num_experts, transformers 5.23 writes num_local_experts
        experts=Key("num_experts", 128, alias="num_local_experts"),
        top_k=Key("num_experts_per_tok", 8),
        routing=rules.softmax(Key("norm_topk_prob", False)),
        moe_layers=rules.sparse_step,
        layouts=PLAIN,
    ),
    Architecture(
        name="OlmoeForCausalLM",
        layers=Key("num_hidden_layers", 16),
        hidden=Key("hidden_size", 2048),
        intermediate=Key("intermediate_size", 2048),
        experts=Key("num_experts", 64, alias="num_local_experts"),
        top_k=Key("num_experts_per_tok", 8),
        routing=rules.softmax(Key("norm_topk_prob", False)),
        moe_layers=rules.every_layer,
        layouts=PLAIN,
    ),
    Architecture(
        name="Qwen2MoeForCausalLM",
        layers=Key("num_hidden_layers", 24),
        hidden=Key("hidden_size", 2048),
        intermediate=Key("moe_intermediate_size", 1408),
        experts=Key("num_experts", 60),
        top_k=Key("num_experts_per_tok", 4),
        routing=rules.softmax(Key("norm_topk_prob", False)),
        moe_layers=rules.sparse_step,
        layouts=QWEN_SHARED,
        shared=rules.one_shared(5632),
    ),
    Architecture(
        name="Qwen3NextForCausalLM",
        layers=Key("num_hidden_layers", 48),
        hidden=Key("hidden_size", 2048),
        intermediate=Key("moe_intermediate_size", 512),
        experts=Key("num_experts", 512),
        top_k=Key("num_experts_per_tok", 10),
        routing=rules.softmax(Key("norm_topk_prob", True)),
        moe_layers=rules.sparse_step,
        layouts=QWEN_SHARED,
        shared=rules.one_shared(512),
    ),
    Architecture(
        name="DeepseekV2ForCausalLM",
        layers=Key("num_hidden_layers", 32),
        hidden=Key("hidden_size", 4096),
        intermediate=Key("moe_intermediate_size", 1407),
        experts=Key("n_routed_experts", 64, alias="num_experts"),
        top_k=Key("num_experts_per_tok", None),
        routing=rules.deepseek_v2,
        moe_layers=rules.after_dense(0),
        layouts=SHARED,
        shared=rules.shared_multiple(2),
    ),
    Architecture(
        name="DeepseekV3ForCausalLM",
        layers=Key("num_hidden_layers", 61),
        hidden=Key("hidden_size", 7168),
        intermediate=Key("moe_intermediate_size", 2048),
        experts=Key("n_routed_experts", 256, alias="num_local_experts"),
        top_k=Key("num_experts_per_tok", 8),
        routing=rules.deepseek_v3(groups=8, top_groups=4, scaling=2.5),
        moe_layers=rules.after_dense(3),
        layouts=CORRECTED,
        shared=rules.shared_multiple(1),
    ),
    Architecture(
        name="Glm4MoeForCausalLM",
        layers=Key("num_hidden_layers", 46),
        hidden=Key("hidden_size", 4096),
        intermediate=Key("moe_intermediate_size", 1408),
        experts=Key("n_routed_experts", 128, alias="num_local_experts"),
        top_k=Key("num_experts_per_tok", 8),
        routing=rules.deepseek_v3(groups=1, top_groups=1, scaling=1.0),
        moe_layers=rules.after_dense(1),
        layouts=CORRECTED,
        shared=rules.shared_multiple(1),
    ),
    Architecture(
        name="GptOssForCausalLM",
        layers=Key("num_hidden_layers", 36),
        hidden=Key("hidden_size", 2880),
        intermediate=Key("intermediate_size", 2880),
        experts=Key("num_local_experts", 128, alias="num_experts"),
        top_k=Key("num_experts_per_tok", 4),
        # softmax over the chosen logits: RoutingRule says why this is the same
        routing=rules.softmax(renormalize=True),
        moe_layers=rules.every_layer,
        layouts=(
            Interleaved(
                router=MLP + "router.weight",
                router_bias=MLP + "router.bias",
                gate_up=MLP + "experts.gate_up_proj",
                gate_up_bias=MLP + "experts.gate_up_proj_bias",
                down=MLP + "experts.down_proj",
                down_bias=MLP + "experts.down_proj_bias",
            ),
        ),
        activation=rules.clamped,
    ),
)
ARCHITECTURES = {row.name: row for row in _ROWS}
