"""A request that can be pasted into a terminal, for the first layer that a tree serves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from fdmoe_ops.settings import Dtype, Settings, SettingsError

DATATYPES = {Dtype.FLOAT32: "FP32", Dtype.BFLOAT16: "BF16", Dtype.FLOAT16: "FP16"}


@dataclass(frozen=True)
class FirstRequest:
    """One token for `layer` of `model`; `hidden_size` is None where config.json leaves it to the architecture."""

    model: str
    layer: int
    hidden_size: int | None
    datatype: str

    @classmethod
    def read(cls, settings: Settings) -> FirstRequest:
        """From resolved settings and the checkpoint's config.json (fdmoe_ops.checkpoint, which knows more, imports
        torch). Raises SettingsError where there is no such file, so that it is known before a tree is started."""
        assert settings.model.path, "resolved settings have a model path"
        assert settings.model.name, "resolved settings have a model name"
        try:
            config = json.loads((settings.model.path / "config.json").read_bytes())
        except (OSError, ValueError) as error:
            raise SettingsError(f"model.path is {settings.model.path}; no config.json can be read: {error}") from error
        if not isinstance(config, dict):
            raise SettingsError(f"model.path is {settings.model.path}; its config.json holds no object")
        layer = _first_moe_layer(config) if settings.model.layers == "all" else min(settings.model.layers)
        hidden_size = config.get("hidden_size")
        datatype = DATATYPES[settings.model.dtype]
        return cls(settings.model.name, layer, hidden_size if isinstance(hidden_size, int) else None, datatype)

    def curl(self, gateway_url: str) -> str:
        """The body is made by Python: 4096 numbers would fill the screen. Without a hidden size, what tells it."""
        address = f"{gateway_url}/v2/models/{self.model}/layers.{self.layer}"
        if self.hidden_size is None:
            return f"curl --silent {address}"
        shape, data = f"[1, {self.hidden_size}]", f"[0.5] * {self.hidden_size}"
        tensor = f'{{"name": "hidden_states", "datatype": "{self.datatype}", "shape": {shape}, "data": {data}}}'
        return (
            f"python3 -c 'import json; print(json.dumps({{\"inputs\": [{tensor}]}}))' |\n"
            f"  curl --silent --data @- --header 'Content-Type: application/json' \\\n"
            f"    {address}/infer"
        )


def _first_moe_layer(config: dict[str, Any]) -> int:
    """Qwen3-MoE may have dense layers: every `decoder_sparse_step`-th has experts, `mlp_only_layers` do not."""
    step, dense = config.get("decoder_sparse_step") or 1, set(config.get("mlp_only_layers") or ())
    # among that many candidates one is not dense
    return next(index for index in range(step - 1, step * (len(dense) + 1), step) if index not in dense)
