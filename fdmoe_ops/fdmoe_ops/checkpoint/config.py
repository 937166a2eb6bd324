"""What config.json says of the MoE layers: which decoder layers they are, their sizes, and how they route."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fdmoe_kernels.activation import SwiGLU
from fdmoe_kernels.routing import RoutingRule
from fdmoe_ops.checkpoint.architectures import ARCHITECTURES, HIDDEN_ACT, Architecture
from fdmoe_ops.checkpoint.config_file import ConfigFile
from fdmoe_ops.checkpoint.errors import ConfigError, UnknownArchitectureError
from fdmoe_ops.checkpoint.layouts import LayerShape


@dataclass(frozen=True, slots=True)
class MoEConfig:
    architecture: Architecture
    decoder_layers: int
    moe_layers: tuple[int, ...]
    shape: LayerShape
    routing: RoutingRule
    activation: SwiGLU


def read_config(path: Path) -> MoEConfig:
    """Read `path`, a config.json. Raises ConfigError; UnknownArchitectureError where the table has no row for it."""
    config = ConfigFile.read(path)
    row = _architecture(config)
    name, activation = config.find(HIDDEN_ACT)
    if activation != "silu":
        raise config.error(name, activation, 'only "silu" can be served: the layers compute SwiGLU')
    _check_not_quantized(config)
    decoder_layers = config.count(row.layers)
    moe_layers = row.moe_layers(config, decoder_layers)
    if not moe_layers:
        raise config.error(row.layers.name, decoder_layers, "none of these layers has experts")
    experts, top_k = config.count(row.experts), config.count(row.top_k)
    if top_k > experts:
        raise config.error(row.top_k.name, top_k, f"at most {experts}, the number of experts, is allowed")
    intermediate = config.count(row.intermediate)
    routing = row.routing(config, top_k)
    try:
        routing.check(experts)
    except ValueError as error:
        raise ConfigError(f"{path}: the experts cannot be routed as it says: {error}") from error
    return MoEConfig(
        architecture=row,
        decoder_layers=decoder_layers,
        moe_layers=moe_layers,
        shape=LayerShape(config.count(row.hidden), intermediate, experts, row.shared(config, intermediate)),
        routing=routing,
        activation=row.activation(config),
    )


def _check_not_quantized(config: ConfigFile) -> None:
    quantization = config.values.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise config.error(
            "quantization_config.quant_method", method, "only weights in float32, bfloat16 or float16 can be served"
        )


def _architecture(config: ConfigFile) -> Architecture:
    names = config.values.get("architectures")
    match names:
        case [str(name), *_] if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UnknownArchitectureError(
        f"{config.path}: architectures is {json.dumps(names)}; the first must be one of {', '.join(ARCHITECTURES)}"
    )
