"""The architectures that can be served: a row for each says how its config.json and its tensors are named.

Names, defaults and routing rules are those of transformers 5.23: configuration_*.py, modeling_*.py and, for the names
of tensors in published checkpoints, conversion_mapping.py. All three architectures route by a softmax over all experts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fdmoe_ops.checkpoint.config_file import ConfigFile, Key
from fdmoe_ops.checkpoint.layouts import Layout, PerExpert, Stacked

HIDDEN_ACT = Key("hidden_act", "silu")


def every_layer(_config: ConfigFile, layers: int) -> tuple[int, ...]:
    """All decoder layers are MoE."""
    return tuple(range(layers))


def sparse_step(config: ConfigFile, layers: int) -> tuple[int, ...]:
    """Every `decoder_sparse_step`-th decoder layer is MoE, but not those in `mlp_only_layers`."""
    step = config.count(Key("decoder_sparse_step", 1))
    dense = config.indices(Key("mlp_only_layers", ()))
    return tuple(layer for layer in range(layers) if (layer + 1) % step == 0 and layer not in dense)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A row of the table. The first layout is the one of published checkpoints."""

    name: str
    layers: Key[int]
    hidden: Key[int]
    intermediate: Key[int]
    experts: Key[int]
    top_k: Key[int]
    renormalize: Key[bool] | bool
    moe_layers: Callable[[ConfigFile, int], tuple[int, ...]]
    layouts: tuple[Layout, ...]


MLP_PER_EXPERT = PerExpert(
    router="model.layers.{layer}.mlp.gate.weight",
    gate="model.layers.{layer}.mlp.experts.{expert}.gate_proj.weight",
    up="model.layers.{layer}.mlp.experts.{expert}.up_proj.weight",
    down="model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",
)
MLP_STACKED = Stacked(
    router="model.layers.{layer}.mlp.gate.weight",
    gate_up="model.layers.{layer}.mlp.experts.gate_up_proj",
    down="model.layers.{layer}.mlp.experts.down_proj",
)

_ROWS = (
    Architecture(
        name="MixtralForCausalLM",
        layers=Key("num_hidden_layers", 32),
        hidden=Key("hidden_size", 4096),
        intermediate=Key("intermediate_size", 14336),
        experts=Key("num_local_experts", 8, alias="num_experts"),
        top_k=Key("num_experts_per_tok", 2),
        renormalize=True,
        moe_layers=every_layer,
        layouts=(
            PerExpert(
                router="model.layers.{layer}.block_sparse_moe.gate.weight",
                gate="model.layers.{layer}.block_sparse_moe.experts.{expert}.w1.weight",
                up="model.layers.{layer}.block_sparse_moe.experts.{expert}.w3.weight",
                down="model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",
            ),
            MLP_STACKED,
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
        renormalize=Key("norm_topk_prob", False),
        moe_layers=sparse_step,
        layouts=(MLP_PER_EXPERT, MLP_STACKED),
    ),
    Architecture(
        name="OlmoeForCausalLM",
        layers=Key("num_hidden_layers", 16),
        hidden=Key("hidden_size", 2048),
        intermediate=Key("intermediate_size", 2048),
        experts=Key("num_experts", 64, alias="num_local_experts"),
        top_k=Key("num_experts_per_tok", 8),
        renormalize=Key("norm_topk_prob", False),
        moe_layers=every_layer,
        layouts=(MLP_PER_EXPERT, MLP_STACKED),
    ),
)
ARCHITECTURES = {row.name: row for row in _ROWS}
