"""Compile the one-launch kernel for a GPU that need not be here, and read what the compiler made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fdmoe_kernels import RoutingRule, Scores, SwiGLU
from fdmoe_kernels._fused_kernel import moe_layer_kernel
from fdmoe_kernels.activation import SILU
from fdmoe_kernels.hardware import Family
from fdmoe_kernels.tiles import Precision, Tiles, choose_tokens, fit, route_lanes, rows_for

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# what one CTA may use of shared memory there
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_89": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
_POINTERS = {
    "correction_bias": "*fp32", "chosen": "*i64", "given": "*fp32",
    "logits": "*fp32", "lists": "*i32", "weights": "*fp32", "norms": "*fp32", "control": "*i32", "totals": "*i64",
    "page": "*i64",
}  # fmt: skip
_RUN_TIME = ("T", "capacity", "row_tiles_bound", "route_steps")


@dataclass(frozen=True)
class Shape:
    """What of a layer is a constant of the build. `absent` names the tensors that the layer does not have."""

    hidden: int
    intermediate: int
    experts: int
    top_k: int
    shared: int = 0
    routing: RoutingRule = RoutingRule(1, renormalize=True)  # noqa: RUF009  (frozen); its top_k is not looked at
    activation: SwiGLU = SILU
    absent: tuple[str, ...] = (
        "router_bias", "correction_bias", "gate_up_bias", "down_bias", "shared_gate", "chosen", "given",
    )  # fmt: skip


@dataclass(frozen=True)
class Build:
    """What one compile gave: instruction counts, registers and spilled bytes per thread, shared memory of a CTA."""

    target: str
    wgmma: int
    spills: int
    registers: int
    shared_bytes: int
    polls_by_load: int
    tf32_products: int
    assembly: str


def build(target: str, dtype: str, tiles: Tiles, shape: Shape, precision: Precision) -> Build:
    """Compile one row of the tuning table for one layer shape; `dtype` is Triton's name (bf16, fp16, fp32)."""
    rule = shape.routing
    lanes = triton.next_power_of_2
    constants = {
        "H": shape.hidden, "I": shape.intermediate, "E": shape.experts, "K": shape.top_k, "S": shape.shared,
        "SIGMOID": rule.scores is Scores.SIGMOID, "RENORMALIZE": rule.renormalize, "SCALING": rule.scaling,
        "GROUPS": rule.groups, "TOP_GROUPS": rule.top_groups, "GROUP_SCORES": rule.group_scores,
        "ALPHA": shape.activation.alpha, "LIMIT": shape.activation.limit, "UP_OFFSET": shape.activation.up_offset,
        "EXPERT_LANES": lanes(shape.experts + shape.shared), "GROUP_LANES": lanes(rule.groups),
        "K_LANES": lanes(shape.top_k),
        "ROUTE_TOKENS": tiles.route_tokens, "ROUTE_EXPERTS": route_lanes(shape.experts),
        "ROUTE_DEPTH": tiles.route_depth, "ROUTE_SPLITS": tiles.route_splits,
        "CHOOSE_TOKENS": choose_tokens(tiles, shape.experts), "ROWS": tiles.rows,
        "UP_COLUMNS": tiles.up_columns, "UP_DEPTH": tiles.up_depth,
        "DOWN_COLUMNS": tiles.down_columns, "DOWN_DEPTH": tiles.down_depth,
        "COMBINE_TOKENS": tiles.combine_tokens, "COMBINE_COLUMNS": tiles.combine_columns,
        "PRECISION": precision, "POLL": 64, "BEATS": True, "FAULT": 0,
    }  # fmt: skip
    constants |= dict.fromkeys(shape.absent)
    names = moe_layer_kernel.arg_names
    signature = {}
    attributes = {}
    for index, name in enumerate(names):
        if name in constants:
            signature[name] = "constexpr"
        elif name in _RUN_TIME:
            signature[name] = "i32"
        else:
            signature[name] = _POINTERS.get(name, f"*{dtype}")
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(moe_layer_kernel, signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    if target == "gfx942":
        assembly = compiled.asm["amdgcn"]
        # scratch memory a lane, as on the others: what is spilled, and the stack
        spills = sum(int(n) for n in re.findall(r"\.private_segment_fixed_size:\s+(\d+)", assembly))
        registers = max(int(n) for n in re.findall(r"\.vgpr_count:\s+(\d+)", assembly))
        polls = 0
    else:
        assembly = compiled.asm["ptx"]
        spills, registers = _resources(compiled.asm["cubin"])
        polls = len(
            re.findall(r"ld\.(?:acquire|relaxed)\.(?:sys|gpu)\.global|ld\.global\.(?:gpu|sys)\.acquire", assembly)
        )
    tf32 = len(re.findall(r"mma\S*tf32|v_mfma\S*_xf32", assembly))
    return Build(
        target, assembly.count("wgmma.mma_async"), spills, registers, compiled.metadata.shared, polls, tf32, assembly
    )  # fmt: skip


def _resources(cubin: bytes) -> tuple[int, int]:
    """Bytes of local memory (stack and spills) and registers per thread, by the cuobjdump that Triton carries."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    assert found, f"cuobjdump said: {text}"
    return int(found[2]) + int(found[3]), int(found[1])


_PLAIN = Shape(2048, 768, 128, 8)
_SIGMOID = RoutingRule(8, True, Scores.SIGMOID, groups=8, top_groups=4, group_scores=2, scaling=2.5)
SHAPES = {
    "qwen3-30b-a3b": _PLAIN,
    "mixtral-8x7b": Shape(4096, 14336, 8, 2),
    "512 experts": Shape(2048, 512, 512, 10),
    "gpt-oss-120b": Shape(
        2880, 2880, 128, 4, activation=SwiGLU(1.702, 7.0, 1.0),
        absent=("correction_bias", "shared_gate", "chosen", "given"),
    ),
    "deepseek-v3": Shape(
        7168, 2048, 256, 8, shared=1, routing=_SIGMOID,
        absent=("router_bias", "gate_up_bias", "down_bias", "shared_gate", "chosen", "given"),
    ),
    "qwen2-57b-a14b": Shape(
        3584, 2560, 64, 8, shared=8,
        absent=("router_bias", "correction_bias", "gate_up_bias", "down_bias", "chosen", "given"),
    ),
    "everything": Shape(
        2880, 2880, 60, 16, shared=2, routing=replace(_SIGMOID, groups=4, top_groups=3),
        activation=SwiGLU(1.702, 7.0, 1.0), absent=("chosen", "given"),
    ),
    "given": replace(_PLAIN, shared=1, absent=tuple(name for name in _PLAIN.absent if name not in ("chosen", "given"))),
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """`ahead_of_time.py TARGET DTYPE SHAPE [PRECISION]`: every row, a JSON line each (for a process without
    TRITON_INTERPRET, which the test process may have set)."""
    target, dtype, name, *rest = arguments
    shape = SHAPES[name]
    precision = cast(Precision, rest[0]) if rest else "ieee"
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    family: Family = "hip" if target.startswith("gfx") else "cuda"
    device = "NVIDIA H200" if target == "sm_90" else None
    several, alone = (rows_for(family, dtypes[dtype], precision, device=device, alone=alone) for alone in (False, True))
    for bound, tiles in several if alone == several else (*several, *alone):
        tiles = fit(
            tiles, hidden_size=shape.hidden, intermediate_size=shape.intermediate, experts=shape.experts,
            element_bytes=dtypes[dtype].itemsize, shared_bytes=SHARED_BYTES[target],
        )  # fmt: skip
        result = build(target, dtype, tiles, shape, precision)
        print(json.dumps({"bound": bound, "rows": tiles.rows} | asdict(result) | {"assembly": ""}))


if __name__ == "__main__":
    main(sys.argv[1:])
