"""One real tree for the end-to-end tests: real processes, real sockets, the demo checkpoint, a real client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from fdmoe_ops.chaos.tree import Tree, running_tree
from fdmoe_ops.demo import write_demo_model


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "demo"
    write_demo_model(directory)
    return directory


@pytest.fixture(scope="session")
def blocks(demo: Path) -> list[torch.nn.Module]:
    """transformers' own MoE blocks over the demo's weights, by decoder layer."""
    model = transformers.Qwen3MoeForCausalLM.from_pretrained(demo, dtype=torch.float32).eval()
    return [layer.mlp for layer in model.model.layers]


@pytest.fixture(scope="module")
def tree(demo: Path) -> Iterator[Tree]:
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--enable-chaos",
        "--recovery-cooldown-initial-s=0.5", "--recovery-cooldown-max-s=0.5", "--enable-recovery-spare-process",
    )  # fmt: skip
    with running_tree(*flags) as tree:
        yield tree
