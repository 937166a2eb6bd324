"""The kernel compiles for the GPUs we name, with tensor cores where they are and registers to spare; no GPU needed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ahead_of_time import SHARED_BYTES

Case = tuple[str, ...]
Build = dict[str, float]
Compiled = Callable[[Case], list[Build]]


@pytest.fixture(scope="module")
def compiled(request: pytest.FixtureRequest) -> Iterator[Compiled]:
    """What the compiler made of a case: of all that are asked for in this run, as many at a time as there are cores."""
    items = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        builds = {case: pool.submit(_compile, *case) for item in items if (case := item.callspec.params.get("case"))}
        yield lambda case: builds[case].result()
        pool.shutdown(cancel_futures=True)


def _compile(target: str, dtype: str, shape: str, *options: str) -> list[Build]:
    script = Path(__file__).parents[1] / "support" / "ahead_of_time.py"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, script, target, dtype, shape, *options],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return [json.loads(line) for line in result.stdout.splitlines()]


def cases(*cases: Case) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[" ".join(case) for case in cases])


@cases(
    ("sm_90", "fp16", "qwen3-30b-a3b"),
    *(
        ("sm_90", "bf16", shape)
        for shape in ("qwen3-30b-a3b", "mixtral-8x7b", "gpt-oss-120b", "deepseek-v3", "qwen2-57b-a14b")
    ),
)
def test_hopper_uses_its_tensor_cores_and_spills_next_to_nothing(compiled: Compiled, case: Case) -> None:
    for build in compiled(case):
        # a tile of fewer rows than a warp group takes is memory-bound: it runs on the older instructions
        assert (build["wgmma"] > 0) == (build["rows"] >= 64)
        # where the parts of the router's logits are read at once; the row for one token has two warps, a lot for the
        # rule's reductions over DeepSeek-V3's 256 experts
        alone = build["rows"] == 16 and math.isinf(build["bound"])
        assert build["spills"] <= (64 if alone else 48)
        assert build["shared_bytes"] <= SHARED_BYTES["sm_90"]
        # a poll is a load, not a read-modify-write that would bounce the line between the SMs
        assert build["polls_by_load"] > 0


@cases(
    *((target, dtype, "qwen3-30b-a3b") for target, dtype in (("sm_80", "bf16"), ("sm_100", "bf16"), ("gfx942", "bf16")))
)
def test_it_compiles_for_other_targets(compiled: Compiled, case: Case) -> None:
    for build in compiled(case):
        assert build["shared_bytes"] <= SHARED_BYTES[case[0]]
        assert build["spills"] <= 64


@cases(("sm_89", "bf16", "qwen3-30b-a3b"), ("sm_90", "bf16", "512 experts"))
def test_many_experts_fit_the_shared_memory(compiled: Compiled, case: Case) -> None:
    for build in compiled(case):
        assert build["shared_bytes"] <= SHARED_BYTES[case[0]]


@cases(
    *(
        (target, "bf16", shape)
        for shape in ("gpt-oss-120b", "everything")
        for target in ("sm_80", "sm_90", "sm_100", "gfx942")
    )
)
def test_layers_with_all_features_fit_every_target(compiled: Compiled, case: Case) -> None:
    for build in compiled(case):
        assert build["shared_bytes"] <= SHARED_BYTES[case[0]]
        # the widest tile beside the rule's reductions: a few registers' worth, of 1020 bytes a thread has
        assert build["spills"] <= 128


@cases(*((target, "fp32", "qwen3-30b-a3b") for target in ("sm_80", "sm_90", "sm_100", "gfx942")))
def test_ieee_arithmetic_keeps_more_than_the_registers_hold(compiled: Compiled, case: Case) -> None:
    # the products are limited by shared memory: the more a thread has of a tile, the less it reads there. On an H200
    # rows that spill so much were faster than those that do not, by a third to a half
    for build in compiled(case):
        assert build["shared_bytes"] <= SHARED_BYTES[case[0]]
        assert build["spills"] <= 256
        assert build["tf32_products"] == 0


@cases(("sm_90", "bf16", "given"), ("sm_90", "fp32", "given"))
def test_a_given_routing_is_a_build_like_the_others(compiled: Compiled, case: Case) -> None:
    for build in compiled(case):
        assert build["shared_bytes"] <= SHARED_BYTES["sm_90"]
        assert build["spills"] <= (32 if case[1] == "bf16" else 256)


@cases(
    *((target, "fp32", "qwen3-30b-a3b", "tf32") for target in ("sm_80", "sm_90", "sm_100", "gfx942")),
    *((target, "fp32", "qwen3-30b-a3b", "tf32x3") for target in ("sm_80", "sm_90", "sm_100")),
)
def test_tf32_takes_the_tensor_cores(compiled: Compiled, case: Case) -> None:
    for build in compiled(case):
        assert build["shared_bytes"] <= SHARED_BYTES[case[0]]
        assert build["spills"] <= 64
        assert build["tf32_products"] > 0
        if case[0] == "sm_90":
            assert (build["wgmma"] > 0) == (build["rows"] >= 64)
