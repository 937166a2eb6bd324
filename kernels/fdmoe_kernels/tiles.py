"""The tuning table: tile sizes of the one-launch kernel, by device and by how many tokens an expert gets on average.

A row serves all token counts up to its bound, so the token count itself never makes a new compile. Rows are constants
of the kernel: a layer compiles as many variants as its device has rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import triton

from fdmoe_kernels.hardware import Family, family, shared_bytes_per_cta
from fdmoe_kernels.layer import MoELayer


@dataclass(frozen=True, slots=True)
class Tiles:
    """One row of the table. rows: tokens of a GEMM tile; up_columns (of gate and of up each), down_columns: its width;
    up_depth, down_depth: inner dimension per step; programs: CTAs per multiprocessor."""

    rows: int
    up_columns: int
    up_depth: int
    down_columns: int
    down_depth: int
    warps: int
    stages: int
    programs: int = 1
    route_tokens: int = 16
    route_depth: int = 128
    combine_tokens: int = 4
    combine_columns: int = 1024


# of the products in a float32 layer
Precision = Literal["ieee", "tf32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# average tokens per expert, up to and including -> tiles
Row = tuple[float, Tiles]
_ALL = float("inf")

# Measured on one H200; elsewhere the pipeline is cut to the shared memory there is.
_CUDA_HALF: tuple[Row, ...] = (
    (6.0, Tiles(rows=16, up_columns=32, up_depth=128, down_columns=64, down_depth=128, warps=4, stages=4, programs=2)),
    (24.0, Tiles(rows=32, up_columns=64, up_depth=64, down_columns=128, down_depth=64, warps=4, stages=4, programs=2)),
    (48.0, Tiles(rows=64, up_columns=64, up_depth=64, down_columns=128, down_depth=64, warps=4, stages=3, programs=2)),
    (_ALL, Tiles(rows=128, up_columns=128, up_depth=64, down_columns=256, down_depth=64, warps=8, stages=4)),
)
# float32 with IEEE arithmetic has no tensor core: small tiles that fit the registers
_CUDA_SINGLE: tuple[Row, ...] = (
    (12.0, Tiles(rows=16, up_columns=32, up_depth=32, down_columns=32, down_depth=32, warps=4, stages=3)),
    (_ALL, Tiles(rows=32, up_columns=32, up_depth=32, down_columns=64, down_depth=32, warps=4, stages=2)),
)
# as for 16-bit elements, at half the depth: as many bytes a step. Compiled ahead of time, not measured
_CUDA_TF32: tuple[Row, ...] = (
    (6.0, Tiles(rows=16, up_columns=32, up_depth=64, down_columns=64, down_depth=64, warps=4, stages=4, programs=2)),
    (24.0, Tiles(rows=32, up_columns=64, up_depth=32, down_columns=128, down_depth=32, warps=4, stages=4, programs=2)),
    (48.0, Tiles(rows=64, up_columns=64, up_depth=32, down_columns=128, down_depth=32, warps=4, stages=3, programs=2)),
    (_ALL, Tiles(rows=128, up_columns=64, up_depth=32, down_columns=128, down_depth=32, warps=8, stages=4)),
)
# 64 KB of shared memory a CTA: compiled ahead of time only, never measured
_HIP: tuple[Row, ...] = (
    (12.0, Tiles(rows=16, up_columns=32, up_depth=64, down_columns=64, down_depth=64, warps=4, stages=2)),
    (_ALL, Tiles(rows=64, up_columns=64, up_depth=64, down_columns=128, down_depth=64, warps=4, stages=2)),
)
_HIP_SINGLE: tuple[Row, ...] = (
    (_ALL, Tiles(rows=16, up_columns=32, up_depth=32, down_columns=32, down_depth=32, warps=4, stages=2)),
)
# the interpreter pays by the operation, not by the element: few, large tiles
_INTERPRETER: tuple[Row, ...] = (
    (_ALL, Tiles(rows=32, up_columns=64, up_depth=128, down_columns=128, down_depth=128, warps=1, stages=1)),
)


def rows_for(family: Family, dtype: torch.dtype, precision: Precision = "ieee") -> tuple[Row, ...]:
    """All rows for one family of devices, one dtype and one precision of float32, by rising bound."""
    single = dtype == torch.float32
    match family:
        case "interpreter":
            return _INTERPRETER
        case "hip":
            return _HIP_SINGLE if single else _HIP
        case "cuda":
            if not single:
                return _CUDA_HALF
            return _CUDA_TF32 if precision == "tf32" else _CUDA_SINGLE


def tiles_for(layer: MoELayer, tokens: int, precision: Precision = "ieee") -> Tiles:
    """The table's row for a batch of `tokens` tokens."""
    average = tokens * layer.routing.top_k / layer.experts
    row = next(tiles for bound, tiles in rows_for(family(), layer.dtype, precision) if average <= bound)
    return fit(
        row,
        hidden_size=layer.hidden_size,
        intermediate_size=layer.intermediate_size,
        experts=layer.experts,
        element_bytes=layer.gate_up.element_size(),
        shared_bytes=shared_bytes_per_cta(layer.device),
    )


def token_counts_of_all_rows(layer: MoELayer, max_tokens: int, precision: Precision = "ieee") -> list[int]:
    """A token count for every row that batches of 1 to `max_tokens` tokens can reach: what a warm-up has to run."""
    bounds = [bound for bound, _ in rows_for(family(), layer.dtype, precision)]
    counts = {1, max_tokens}
    for bound in bounds[:-1]:
        last = int(bound * layer.experts / layer.routing.top_k)
        counts |= {min(max(last, 1), max_tokens), min(last + 1, max_tokens)}
    return sorted(counts)


def fit(
    tiles: Tiles, *, hidden_size: int, intermediate_size: int, experts: int, element_bytes: int, shared_bytes: int
) -> Tiles:
    """No tile larger than the layer (powers of two, and 16 at least, which tl.dot asks for), and no more pipeline
    stages than shared memory holds: each keeps one step's tiles of the widest product, the router's included."""
    hidden, intermediate = (max(16, triton.next_power_of_2(n)) for n in (hidden_size, intermediate_size))
    fitted = replace(
        tiles,
        up_columns=min(tiles.up_columns, intermediate),
        up_depth=min(tiles.up_depth, hidden),
        down_columns=min(tiles.down_columns, hidden),
        down_depth=min(tiles.down_depth, intermediate),
        route_depth=min(tiles.route_depth, hidden),
        combine_columns=min(tiles.combine_columns, hidden),
    )
    route_width = fitted.route_tokens + max(16, triton.next_power_of_2(experts))
    # the router's tile gets as shallow as the pipeline of the others needs, and no shallower than tl.dot allows
    depth = shared_bytes // (element_bytes * route_width * fitted.stages)
    fitted = replace(fitted, route_depth=max(16, min(fitted.route_depth, _power_of_two_below(depth))))
    stage = element_bytes * max(
        (fitted.rows + 2 * fitted.up_columns) * fitted.up_depth,
        (fitted.rows + fitted.down_columns) * fitted.down_depth,
        route_width * fitted.route_depth,
    )
    return replace(fitted, stages=max(1, min(tiles.stages, shared_bytes // stage)))


def _power_of_two_below(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)
