"""`python benchmarks/qwen3_layer.py DIRECTORY`: a checkpoint of one decoder layer's experts, of Qwen3-30B-A3B's shape.

Random bfloat16 weights, 1.2 GB: what a game day, a soak or a recording on a GPU serves, without a download.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def write_qwen3_layer(directory: Path) -> None:
    """One decoder layer's MoE block of Qwen3-30B-A3B's shape with random bfloat16 weights, 1.2 GB."""
    hidden, intermediate, experts = 2048, 768, 128
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": hidden,
        "moe_intermediate_size": intermediate, "num_experts": experts, "num_experts_per_tok": 8,
        "norm_topk_prob": True, "num_hidden_layers": 1, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "hidden_act": "silu", "dtype": "bfloat16",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale / shape[-1] ** 0.5).bfloat16()

    prefix = "model.layers.0.mlp."
    tensors = {f"{prefix}gate.weight": draw(experts, hidden, scale=2.0)}
    for expert in range(experts):
        tensors[f"{prefix}experts.{expert}.gate_proj.weight"] = draw(intermediate, hidden)
        tensors[f"{prefix}experts.{expert}.up_proj.weight"] = draw(intermediate, hidden)
        tensors[f"{prefix}experts.{expert}.down_proj.weight"] = draw(hidden, intermediate)
    save_file(tensors, directory / "model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/qwen3_layer.py DIRECTORY")
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    write_qwen3_layer(Path(sys.argv[1]))
