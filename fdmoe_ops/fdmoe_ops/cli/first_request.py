"""A request that can be pasted into a terminal, for the first layer that a tree serves."""

from __future__ import annotations

import json
from typing import Any

from fdmoe_ops.settings import Dtype, Settings

DATATYPES = {Dtype.FLOAT32: "FP32", Dtype.BFLOAT16: "BF16", Dtype.FLOAT16: "FP16"}


def curl_command(settings: Settings, gateway_url: str) -> str:
    """One token of the model's hidden size, made by Python: a body of 4096 numbers would fill the screen."""
    assert settings.model.path, "resolved settings have a model path"
    config = json.loads((settings.model.path / "config.json").read_bytes())
    layer = min(settings.model.layers) if settings.model.layers != "all" else _first_moe_layer(config)
    hidden, datatype = config["hidden_size"], DATATYPES[settings.model.dtype]
    tensor = f'{{"name": "hidden_states", "datatype": "{datatype}", "shape": [1, {hidden}], "data": [0.5] * {hidden}}}'
    request = f'{{"inputs": [{tensor}]}}'
    return (
        f"python3 -c 'import json; print(json.dumps({request}))' |\n"
        f"  curl --silent --data @- --header 'Content-Type: application/json' \\\n"
        f"    {gateway_url}/v2/models/{settings.model.name}/layers.{layer}/infer"
    )


def _first_moe_layer(config: dict[str, Any]) -> int:
    """Qwen3-MoE may have dense layers: every `decoder_sparse_step`-th has experts, `mlp_only_layers` do not."""
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    return next(index for index in range(config["num_hidden_layers"]) if (index + 1) % step == 0 and index not in dense)
