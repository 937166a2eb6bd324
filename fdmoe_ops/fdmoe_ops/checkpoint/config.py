"""What config.json says of the MoE layers: which decoder layers they are, their sizes, and how they route."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from fdmoe_kernels.routing import RoutingRule
from fdmoe_ops.checkpoint.architectures import ARCHITECTURES, HIDDEN_ACT, Architecture
from fdmoe_ops.checkpoint.config_file import ConfigFile
from fdmoe_ops.checkpoint.errors import UnknownArchitectureError
from fdmoe_ops.checkpoint.layouts import LayerShape


@dataclass(frozen=True, slots=True)
class MoEConfig:
    architecture: Architecture
    decoder_layers: int
    moe_layers: tuple[int, ...]
    shape: LayerShape
    routing: RoutingRule


def read_config(path: Path) -> MoEConfig:
    """Read `path`, a config.json. Raises ConfigError; UnknownArchitectureError where the table has no row for it."""
    config = ConfigFile.read(path)
    row = _architecture(config)
    name, activation = config.find(HIDDEN_ACT)
    if activation != "silu":
        raise config.error(name, activation, 'only "silu" can be served: the layers compute SwiGLU')
    decoder_layers = config.count(row.layers)
    moe_layers = row.moe_layers(config, decoder_layers)
    if not moe_layers:
        raise config.error(row.layers.name, decoder_layers, "none of these layers has experts")
    experts, top_k = config.count(row.experts), config.count(row.top_k)
    if top_k > experts:
        raise config.error(row.top_k.name, top_k, f"at most {experts}, the number of experts, is allowed")
    renormalize = row.renormalize if isinstance(row.renormalize, bool) else config.flag(row.renormalize)
    return MoEConfig(
        architecture=row,
        decoder_layers=decoder_layers,
        moe_layers=moe_layers,
        shape=LayerShape(config.count(row.hidden), config.count(row.intermediate), experts),
        routing=RoutingRule(top_k, renormalize),
    )


def _architecture(config: ConfigFile) -> Architecture:
    names = config.values.get("architectures")
    match names:
        case [str(name), *_] if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    raise UnknownArchitectureError(
        f"{config.path}: architectures is {json.dumps(names)}; the first must be one of {', '.join(ARCHITECTURES)}"
    )
