"""Tile sizes of the portable form, by device and by how many tokens an expert gets on average.

The numbers are in tuning/*.json. A row serves all token counts up to its bound, so the token count itself never makes a
new compile. Rows are constants of the kernel: a layer compiles as many variants as its device's table has rows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import triton

from fdmoe_kernels.hardware import Family, device_name, family, shared_bytes_per_cta
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.tuning.form import Form
from fdmoe_kernels.tuning.tables import Kind, pinned_row, rows_of


@dataclass(frozen=True, slots=True)
class Tiles:
    """One row of the table. rows: tokens of a GEMM tile; up_columns (of gate and of up each), down_columns: its width;
    up_depth, down_depth: inner dimension per step; programs: CTAs per multiprocessor; route_splits: parts of the
    router's inner dimension at most, each a work item."""

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
    route_splits: int = 8
    combine_tokens: int = 4
    combine_columns: int = 1024


# of the products in a float32 layer
Precision = Literal["ieee", "tf32x3", "tf32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# of a float32 layer's rows: those of a precision, or where there are none, what serves it as well
_KINDS: dict[Precision, tuple[Kind, ...]] = {
    "ieee": ("single",),
    "tf32x3": ("tf32x3", "tf32", "single"),
    "tf32": ("tf32", "single"),
}

# average tokens per expert, up to and including -> tiles
Row = tuple[float, Tiles]

_POWERS = (16, 32, 64, 128, 256)
# tl.dot takes 16 at least, and powers of two
ALLOWED = {
    "rows": _POWERS,
    "up_columns": _POWERS,
    "up_depth": _POWERS,
    "down_columns": _POWERS,
    "down_depth": _POWERS,
    "warps": (1, 2, 4, 8, 16),
    "stages": tuple(range(1, 9)),
    "programs": tuple(range(1, 9)),
    "route_tokens": _POWERS,
    "route_depth": _POWERS,
    "route_splits": (1, 2, 4, 8, 16),
    "combine_tokens": (1, 2, 4, 8, 16, 32),
    "combine_columns": (*_POWERS, 512, 1024, 2048, 4096),
}


def kinds_of(dtype: torch.dtype, precision: Precision, *, alone: bool = False) -> tuple[Kind, ...]:
    """Of the tables' rows: the numbers' own, then those that serve where a table has none. `alone`: for one token."""
    if dtype == torch.float32:
        return _KINDS[precision]
    return ("half-alone", "half") if alone else ("half",)


def rows_for(
    family: Family,
    dtype: torch.dtype,
    precision: Precision = "ieee",
    *,
    device: str | None = None,
    alone: bool = False,
) -> tuple[Row, ...]:
    """All rows for one family of devices, one dtype and one precision of float32, by rising bound; those of `device`'s
    own table if its name has one, the family's default else. `alone`: those for one token."""
    kinds = kinds_of(dtype, precision, alone=alone)
    rows = next((rows for kind in kinds if (rows := rows_of(TRITON, kind, family, device))), ())
    assert rows, f"no table has rows for {family}, {dtype}"
    return rows


def tiles_for(layer: MoELayer, tokens: int, precision: Precision = "ieee") -> Tiles:
    """The table's row for a batch of `tokens` tokens."""
    row = pinned_row(TRITON)
    if row is None:
        average = tokens * layer.routing.top_k / layer.experts
        rows = rows_for(family(), layer.dtype, precision, device=device_name(layer.device), alone=tokens == 1)
        row = next(tiles for bound, tiles in rows if average <= bound)
    return fit_layer(row, layer)


def fit_layer(tiles: Tiles, layer: MoELayer) -> Tiles:
    """`fit` for a layer on its device."""
    return fit(
        tiles,
        hidden_size=layer.hidden_size,
        intermediate_size=layer.intermediate_size,
        experts=layer.experts,
        element_bytes=layer.gate_up.element_size(),
        shared_bytes=shared_bytes_per_cta(layer.device),
    )


def token_counts_of_all_rows(layer: MoELayer, max_tokens: int, precision: Precision = "ieee") -> list[int]:
    """A token count for every row that batches of 1 to `max_tokens` tokens can reach: what a warm-up has to run."""
    rows = rows_for(family(), layer.dtype, precision, device=device_name(layer.device))
    bounds = [bound for bound, _ in rows]
    counts = {1, max_tokens}
    for bound in bounds[:-1]:
        last = int(bound * layer.experts / layer.routing.top_k)
        counts |= {min(max(last, 1), max_tokens), min(last + 1, max_tokens)}
    return sorted(counts)


@functools.cache
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
    route_width = fitted.route_tokens + route_lanes(experts)
    # the router's tile gets as shallow as the pipeline of the others needs, and no shallower than tl.dot allows
    depth = shared_bytes // (element_bytes * route_width * fitted.stages)
    fitted = replace(fitted, route_depth=max(16, min(fitted.route_depth, _power_of_two_below(depth))))
    stage = element_bytes * max(
        (fitted.rows + 2 * fitted.up_columns) * fitted.up_depth,
        (fitted.rows + fitted.down_columns) * fitted.down_depth,
        route_width * fitted.route_depth,
    )
    return replace(fitted, stages=max(1, min(tiles.stages, shared_bytes // stage)))


def choose_tokens(tiles: Tiles, experts: int) -> int:
    """For how many tokens of a route tile experts are chosen at once: a thread has 16 of their logits, or it spills."""
    return max(1, min(tiles.route_tokens, 16 * 32 * tiles.warps // route_lanes(experts)))


def route_lanes(experts: int) -> int:
    """The columns of a route tile's logits: a power of two, and 16 at least, which tl.dot asks for."""
    lanes: int = triton.next_power_of_2(experts)
    return max(16, lanes)


def _power_of_two_below(number: int) -> int:
    return 1 << max(number.bit_length() - 1, 0)


TRITON = Form("triton", Tiles, ALLOWED, fitted=lambda tiles, layer, _: fit_layer(tiles, layer))
