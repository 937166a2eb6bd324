"""What the architectures compute from their config.json: which layers are MoE, how they route, what is shared.

Each is as transformers 5.23 reads it in modeling_*.py. All raise ConfigError for a value that cannot be served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fdmoe_kernels.activation import SILU, SwiGLU
from fdmoe_kernels.routing import RoutingRule, Scores
from fdmoe_ops.checkpoint.config_file import ConfigFile, Key

Routing = Callable[[ConfigFile, int], RoutingRule]
"""The rule, of a config.json and the number of experts chosen per token."""


def every_layer(_config: ConfigFile, layers: int) -> tuple[int, ...]:
    """All decoder layers are MoE."""
    return tuple(range(layers))


def sparse_step(config: ConfigFile, layers: int) -> tuple[int, ...]:
    """Every `decoder_sparse_step`-th decoder layer is MoE, but not those in `mlp_only_layers`."""
    step = config.count(Key("decoder_sparse_step", 1))
    dense = config.indices(Key("mlp_only_layers", ()))
    return tuple(layer for layer in range(layers) if (layer + 1) % step == 0 and layer not in dense)


def after_dense(default: int) -> Callable[[ConfigFile, int], tuple[int, ...]]:
    """All decoder layers but the first `first_k_dense_replace` are MoE."""

    def moe_layers(config: ConfigFile, layers: int) -> tuple[int, ...]:
        # published with the models, and not read by transformers: every model says 1
        config.only_default(Key("moe_layer_freq", 1), "that every layer after the dense ones is MoE")
        return tuple(range(config.count(Key("first_k_dense_replace", default), least=0), layers))

    return moe_layers


def softmax(renormalize: Key[bool] | bool) -> Routing:
    """A softmax over all experts, and the K largest."""

    def routing(config: ConfigFile, top_k: int) -> RoutingRule:
        return RoutingRule(top_k, renormalize if isinstance(renormalize, bool) else config.flag(renormalize))

    return routing


def deepseek_v2(config: ConfigFile, top_k: int) -> RoutingRule:
    """A softmax; the best experts, or those of the groups with the best expert; weights times a factor."""
    # transformers does not read it, and the code published with the models divides instead of scaling
    config.only_default(Key("norm_topk_prob", False), "that weights are scaled and not divided by their sum")
    config.only_default(Key("mlp_bias", False), "that the shared experts have no biases")
    scaling = config.number(Key("routed_scaling_factor", 1.0))
    name, method = config.find(Key("topk_method", "greedy"))
    if method == "greedy":
        return RoutingRule(top_k, renormalize=False, scaling=scaling)
    if method != "group_limited_greedy":
        raise config.error(name, method, '"greedy" or "group_limited_greedy" is needed')
    groups, top_groups = config.count(Key("n_group", None)), config.count(Key("topk_group", None))
    return _grouped(config, RoutingRule(top_k, renormalize=False, scaling=scaling), groups, top_groups, 1)


def deepseek_v3(groups: int, top_groups: int, scaling: float) -> Routing:
    """Sigmoids, chosen with a correction out of the groups with the best two experts; weights times a factor."""

    def routing(config: ConfigFile, top_k: int) -> RoutingRule:
        rule = RoutingRule(
            top_k,
            config.flag(Key("norm_topk_prob", True)),
            Scores.SIGMOID,
            scaling=config.number(Key("routed_scaling_factor", scaling)),
        )
        given = config.count(Key("n_group", groups))
        return _grouped(config, rule, given, config.count(Key("topk_group", top_groups)), min(given, 2))

    return routing


def _grouped(config: ConfigFile, rule: RoutingRule, groups: int, top_groups: int, group_scores: int) -> RoutingRule:
    if top_groups > groups:
        raise config.error("topk_group", top_groups, f"at most {groups}, which is n_group, is allowed")
    return replace(rule, groups=groups, top_groups=top_groups, group_scores=group_scores)


def nothing_shared(_config: ConfigFile, _intermediate: int) -> int:
    """No shared expert."""
    return 0


def one_shared(default: int) -> Callable[[ConfigFile, int], int]:
    """A shared expert of its own intermediate size."""
    return lambda config, _intermediate: config.count(Key("shared_expert_intermediate_size", default))


def shared_multiple(default: int) -> Callable[[ConfigFile, int], int]:
    """`n_shared_experts` shared experts, stored as one of so many times the intermediate size."""
    return lambda config, intermediate: config.count(Key("n_shared_experts", default)) * intermediate


def silu(_config: ConfigFile) -> SwiGLU:
    return SILU


def clamped(config: ConfigFile) -> SwiGLU:
    """gpt-oss: a clamp, a gain within the sigmoid, and one more than up."""
    limit = config.number(Key("swiglu_limit", 7.0))
    return SwiGLU(config.number(Key("swiglu_alpha", 1.702)), limit, 1.0)
