"""A tiny, real and complete Qwen3-MoE checkpoint, so that the service can be tried without a download.

Written with numpy alone: the process that writes it has no need of torch's seconds of import.
"""

from __future__ import annotations

import errno
import filecmp
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

Array = npt.NDArray[np.float32]

# the keys of a published Qwen3-30B-A3B, so that what reads those reads this
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "decoder_sparse_step": 1,
    "dtype": "float32",
    "eos_token_id": 1,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 128,
}
# logits of standard deviation 2: the two chosen weights differ, and every expert has its tokens
ROUTER_SCALE = 2.0


def write_demo_model(directory: Path, *, seed: int = 0) -> None:
    """Write config.json and model.safetensors (1.1 MB, float32) into `directory`, all at once or not at all.

    The directory is made with its parents; it may exist if it is empty, or if it already holds exactly these files.
    Raises FileExistsError when something else is there, and other OSErrors as they come.
    """
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as scratch:
        complete = Path(scratch) / directory.name
        complete.mkdir()
        (complete / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
        # the metadata is what transformers writes
        tensors = save(_weights(np.random.default_rng(seed)), metadata={"format": "pt"})
        # not save_file, whose file is for its owner alone (mode 0600) whatever the umask says
        (complete / "model.safetensors").write_bytes(tensors)
        try:
            # takes the place of nothing or of an empty directory, never of a file in use
            complete.rename(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if not _same_files(complete, directory):
                raise FileExistsError(
                    f"{directory} is not empty and is not this demo model; an empty or a new directory is needed"
                ) from error


def _same_files(written: Path, found: Path) -> bool:
    names = sorted(path.name for path in written.iterdir())
    if not found.is_dir() or sorted(path.name for path in found.iterdir()) != names:
        return False
    return all(filecmp.cmp(written / name, found / name, shallow=False) for name in names)


def _weights(random: np.random.Generator) -> dict[str, Array]:
    """All tensors under their published names. A projection keeps its input's scale: values of variance 1 / width."""

    def draw(rows: int, width: int, scale: float = 1.0) -> Array:
        values: Array = random.standard_normal((rows, width), dtype=np.float32)
        return values * np.float32(scale / width**0.5)

    def norm(width: int) -> Array:
        return np.ones(width, dtype=np.float32)

    hidden, intermediate, head = CONFIG["hidden_size"], CONFIG["moe_intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * head, CONFIG["num_key_value_heads"] * head
    weights = {"model.embed_tokens.weight": draw(CONFIG["vocab_size"], hidden, scale=hidden**0.5)}
    for layer in range(CONFIG["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        weights |= {
            f"{block}.input_layernorm.weight": norm(hidden),
            f"{block}.self_attn.q_proj.weight": draw(queries, hidden),
            f"{block}.self_attn.k_proj.weight": draw(keys, hidden),
            f"{block}.self_attn.v_proj.weight": draw(keys, hidden),
            f"{block}.self_attn.o_proj.weight": draw(hidden, queries),
            f"{block}.self_attn.q_norm.weight": norm(head),
            f"{block}.self_attn.k_norm.weight": norm(head),
            f"{block}.post_attention_layernorm.weight": norm(hidden),
            f"{block}.mlp.gate.weight": draw(CONFIG["num_experts"], hidden, ROUTER_SCALE),
        }
        for expert in range(CONFIG["num_experts"]):
            weights |= {
                f"{block}.mlp.experts.{expert}.gate_proj.weight": draw(intermediate, hidden),
                f"{block}.mlp.experts.{expert}.up_proj.weight": draw(intermediate, hidden),
                f"{block}.mlp.experts.{expert}.down_proj.weight": draw(hidden, intermediate),
            }
    return weights | {"model.norm.weight": norm(hidden), "lm_head.weight": draw(CONFIG["vocab_size"], hidden)}
