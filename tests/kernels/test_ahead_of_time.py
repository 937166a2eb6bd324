"""The kernel compiles for the GPUs we name, with tensor cores where they are and registers to spare; no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ahead_of_time import SHARED_BYTES

# (H, I, E, K) of Qwen3-30B-A3B and of Mixtral-8x7B
SHAPES = {
    "qwen3-30b-a3b": (2048, 768, 128, 8),
    "mixtral-8x7b": (4096, 14336, 8, 2),
    "512 experts": (2048, 512, 512, 10),
}


def _compile(target: str, dtype: str, shape: str) -> list[dict[str, float]]:
    script = Path(__file__).parents[1] / "support" / "ahead_of_time.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, script, target, dtype, *map(str, SHAPES[shape])],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("shape", ["qwen3-30b-a3b", "mixtral-8x7b"])
def test_hopper_uses_its_tensor_cores_and_spills_next_to_nothing(shape: str) -> None:
    for build in _compile("sm_90", "bf16", shape):
        # a tile of fewer rows than a warp group takes is memory-bound: it runs on the older instructions
        assert (build["wgmma"] > 0) == (build["rows"] >= 64)
        assert build["spills"] <= 16
        assert build["shared_bytes"] <= SHARED_BYTES["sm_90"]
        # a poll is a load, not a read-modify-write that would bounce the line between the SMs
        assert build["polls_by_load"] > 0


@pytest.mark.parametrize(
    ("target", "dtype"), [("sm_80", "bf16"), ("sm_100", "bf16"), ("sm_90", "fp32"), ("gfx942", "bf16")]
)
def test_it_compiles_for_other_targets(target: str, dtype: str) -> None:
    for build in _compile(target, dtype, "qwen3-30b-a3b"):
        assert build["shared_bytes"] <= SHARED_BYTES[target]
        assert build["spills"] <= 64


@pytest.mark.parametrize(("target", "shape"), [("sm_89", "qwen3-30b-a3b"), ("sm_90", "512 experts")])
def test_many_experts_fit_the_shared_memory(target: str, shape: str) -> None:
    for build in _compile(target, "bf16", shape):
        assert build["shared_bytes"] <= SHARED_BYTES[target]
