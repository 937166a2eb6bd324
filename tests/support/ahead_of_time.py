"""Compile the one-launch kernel for a GPU that need not be here, and read what the compiler made of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fdmoe_kernels._fused_kernel import moe_layer_kernel
from fdmoe_kernels.hardware import Family
from fdmoe_kernels.tiles import Tiles, fit, rows_for

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
    "lists": "*i32", "weights": "*fp32", "norms": "*fp32", "control": "*i32", "totals": "*i64", "page": "*i64",
}  # fmt: skip
_RUN_TIME = ("T", "capacity", "row_tiles_bound")


@dataclass(frozen=True)
class Build:
    """What one compile gave: instruction counts, registers and spilled bytes per thread, shared memory of a CTA."""

    target: str
    wgmma: int
    spills: int
    registers: int
    shared_bytes: int
    polls_by_load: int
    assembly: str


def build(target: str, dtype: str, tiles: Tiles, *, hidden: int, intermediate: int, experts: int, top_k: int) -> Build:
    """Compile one row of the tuning table for one layer shape; `dtype` is Triton's name (bf16, fp16, fp32)."""
    constants = {
        "H": hidden, "I": intermediate, "E": experts, "K": top_k, "RENORMALIZE": True,
        "ROUTE_TOKENS": tiles.route_tokens, "ROUTE_EXPERTS": max(16, triton.next_power_of_2(experts)),
        "ROUTE_DEPTH": tiles.route_depth, "ROWS": tiles.rows,
        "UP_COLUMNS": tiles.up_columns, "UP_DEPTH": tiles.up_depth,
        "DOWN_COLUMNS": tiles.down_columns, "DOWN_DEPTH": tiles.down_depth,
        "COMBINE_TOKENS": tiles.combine_tokens, "COMBINE_COLUMNS": tiles.combine_columns,
        "PRECISION": "ieee", "POLL": 64, "BEATS": True, "FAULT": 0,
    }  # fmt: skip
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
        spills = sum(int(n) for n in re.findall(r"\.vgpr_spill_count:\s+(\d+)", assembly))
        registers = max(int(n) for n in re.findall(r"\.vgpr_count:\s+(\d+)", assembly))
        polls = 0
    else:
        assembly = compiled.asm["ptx"]
        spills, registers = _resources(compiled.asm["cubin"])
        polls = len(
            re.findall(r"ld\.(?:acquire|relaxed)\.(?:sys|gpu)\.global|ld\.global\.(?:gpu|sys)\.acquire", assembly)
        )
    return Build(
        target, assembly.count("wgmma.mma_async"), spills, registers, compiled.metadata.shared, polls, assembly
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


def main(arguments: list[str]) -> None:
    """`ahead_of_time.py TARGET DTYPE H I E K`: every row of the table, a JSON line each (for a process without
    TRITON_INTERPRET, which the test process may have set)."""
    target, dtype, *sizes = arguments
    hidden, intermediate, experts, top_k = map(int, sizes)
    names = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    family: Family = "hip" if target.startswith("gfx") else "cuda"
    for bound, tiles in rows_for(family, names[dtype]):
        tiles = fit(
            tiles, hidden_size=hidden, intermediate_size=intermediate, experts=experts,
            element_bytes=names[dtype].itemsize, shared_bytes=SHARED_BYTES[target],
        )  # fmt: skip
        result = build(target, dtype, tiles, hidden=hidden, intermediate=intermediate, experts=experts, top_k=top_k)
        print(json.dumps({"bound": bound, "rows": tiles.rows} | asdict(result) | {"assembly": ""}))


if __name__ == "__main__":
    main(sys.argv[1:])
