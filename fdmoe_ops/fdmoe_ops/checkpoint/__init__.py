"""The MoE layers of a Hugging Face model directory, memory-mapped and checked, without transformers."""

from fdmoe_ops.checkpoint.checkpoint import Checkpoint
from fdmoe_ops.checkpoint.errors import (
    CheckpointError,
    ConfigError,
    LayerIndexError,
    MissingShardError,
    MissingTensorError,
    ShardError,
    TensorError,
    TruncatedShardError,
    UnknownArchitectureError,
    UnsupportedDtypeError,
    WrongShapeError,
)
from fdmoe_ops.checkpoint.layouts import LayerShape, LayerTensors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "ConfigError",
    "LayerIndexError",
    "LayerShape",
    "LayerTensors",
    "MissingShardError",
    "MissingTensorError",
    "ShardError",
    "TensorError",
    "TruncatedShardError",
    "UnknownArchitectureError",
    "UnsupportedDtypeError",
    "WrongShapeError",
]
