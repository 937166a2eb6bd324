"""The kernel compiles for the GPUs we name, with tensor cores where they are and registers to spare; no GPU needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ahead_of_time import SHARED_BYTES


def _compile(target: str, dtype: str, shape: str, *options: str) -> list[dict[str, float]]:
    script = Path(__file__).parents[1] / "support" / "ahead_of_time.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, script, target, dtype, shape, *options],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("shape", ["qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-120b", "deepseek-v3", "qwen2-57b-a14b"])
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


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("shape", ["gpt-oss-120b", "deepseek-v3", "everything"])
def test_layers_with_all_features_fit_every_target(target: str, shape: str) -> None:
    for build in _compile(target, "bf16", shape):
        assert build["shared_bytes"] <= SHARED_BYTES[target]
        # the widest tile beside the rule's reductions: a few registers' worth, of 1020 bytes a thread has
        assert build["spills"] <= 128


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_given_routing_is_a_build_like_the_others(dtype: str) -> None:
    for build in _compile("sm_90", dtype, "given"):
        assert build["shared_bytes"] <= SHARED_BYTES["sm_90"]
        assert build["spills"] <= 16


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_tf32_takes_the_tensor_cores(target: str) -> None:
    for build in _compile(target, "fp32", "qwen3-30b-a3b", "tf32"):
        assert build["shared_bytes"] <= SHARED_BYTES[target]
        assert build["spills"] <= 64
        assert build["tf32_products"] > 0
        if target == "sm_90":
            assert (build["wgmma"] > 0) == (build["rows"] >= 64)
