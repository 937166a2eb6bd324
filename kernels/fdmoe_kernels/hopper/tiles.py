"""How the Hopper kernel cuts its work. All of it is decided at run time: no value here makes another build."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch

from fdmoe_kernels.hardware import device_name, hopper_kernels_supported, multiprocessors
from fdmoe_kernels.hopper.build import WIDTHS
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.tuning.form import Form, steps
from fdmoe_kernels.tuning.tables import pinned_row, rows_of

# Tokens per expert up to which the portable form is faster, with the tile numbers that there are for any device, or
# where it has one CTA a multiprocessor
MOST_PORTABLE_TOKENS = 4.0
# and with those of a device's own table (one H200, at 8, 16 and 32: 0.97, 0.98 to 0.99 and 1.02 of this form's time)
_MOST_WITH_OWN_TABLE = {"NVIDIA H200": 22.0}
ROUTE_TOKENS = 64  # of a router tile at most, for the shared memory it has (MAX_ROUTE_TOKENS in params.cuh)
_DEPTH = 64
WEIGHT_ROWS = 128  # of a GEMM tile: of the router, of gate and up together, or of down (params.cuh)


def most_portable_tokens(device: str | None) -> float:
    """Per expert, on a device of this name, for a launch that may take all of it."""
    measured = (most for name, most in _MOST_WITH_OWN_TABLE.items() if device and device.startswith(name))
    return next(measured, MOST_PORTABLE_TOKENS)


@dataclass(frozen=True, slots=True)
class HopperTiles:
    """How one launch is cut.

    token_tile      the most tokens of a GEMM tile, one of build.WIDTHS
    slots           items that a CTA has in hand, 2 to 4
    route_tokens    tokens of a router tile, at most ROUTE_TOKENS
    route_splits    parts of the router's inner dimension, each an item
    choose_tokens   tokens whose experts an item chooses: a power of two, as route_tokens
    row_group       row tiles whose CTAs share the weights in L2
    column_blocks   parts of H that are combined one by one, 1 to 8
    combine_tokens  tokens of a combine item
    sort            the first up tile of some rows leaves them sorted by expert for the others
    paired          clusters of two CTAs compute neighbouring columns of the same rows, which are loaded once for both
    """

    token_tile: int
    slots: int
    route_tokens: int
    route_splits: int
    choose_tokens: int
    row_group: int
    column_blocks: int
    combine_tokens: int
    sort: bool
    paired: bool


@dataclass(frozen=True, slots=True)
class HopperRow:
    """One row of the tuning table: fields of HopperTiles, 0 for what `default_tiles` finds; sort and
    paired: 1 is no, 2 is yes."""

    token_tile: int = 0
    slots: int = 0
    route_tokens: int = 0
    route_splits: int = 0
    choose_tokens: int = 0
    row_group: int = 0
    column_blocks: int = 0
    combine_tokens: int = 0
    sort: int = 0
    paired: int = 0


def default_tiles(tokens: int, *, experts: int, top_k: int, hidden_size: int, multiprocessors: int) -> HopperTiles:
    """What fits a batch by arithmetic alone; the tuning table holds what was measured to be better."""
    average = tokens * top_k / experts
    # most experts' tokens in one tile: the mean and three standard deviations of an even router
    wanted = min(average + 3 * math.sqrt(average), tokens)
    token_tile = next((width for width in WIDTHS if width >= wanted), WIDTHS[-1])
    # a tile reads all of the router; eight warps choose for a token or two each at a time
    route_tokens = min(ROUTE_TOKENS, 1 << int(math.log2(token_tile)), max(16, _power_of_two(tokens / 32)))
    blocks = math.ceil(experts / WEIGHT_ROWS)
    free = multiprocessors / (math.ceil(tokens / route_tokens) * blocks)
    steps = math.ceil(hidden_size / _DEPTH)
    share = tokens / multiprocessors
    return HopperTiles(
        token_tile=token_tile,
        slots=4 if token_tile <= 32 else 2,
        route_tokens=route_tokens,
        route_splits=max(1, min(int(free), 8, steps)),
        choose_tokens=min(route_tokens, _power_of_two(share)),
        row_group=8,
        column_blocks=2 if tokens >= 4096 else 1,
        # an item a CTA and column block, or where there are many tokens two or more: an item's beginning costs 1.7 us
        combine_tokens=max(min(16, math.ceil(share)), min(64, 2 * math.ceil(share / 4))),
        sort=token_tile > 176,
        paired=token_tile > 176,
    )


def _power_of_two(least: float) -> int:
    """8 at least."""
    return 1 << max(3, math.ceil(math.log2(least)))


def tiles_for(layer: MoELayer, tokens: int) -> HopperTiles:
    """The table's row for a batch of `tokens` tokens, completed by arithmetic."""
    row = pinned_row(HOPPER)
    if row is None:
        average = tokens * layer.routing.top_k / layer.experts
        rows = rows_of(HOPPER, "half", "cuda", device_name(layer.device))
        row = next((row for bound, row in rows if average <= bound), HopperRow())
    return complete(row, layer, tokens)


def complete(row: HopperRow, layer: MoELayer, tokens: int) -> HopperTiles:
    """`row` with what it leaves open."""
    tiles = default_tiles(
        tokens,
        experts=layer.experts,
        top_k=layer.routing.top_k,
        hidden_size=layer.hidden_size,
        multiprocessors=multiprocessors(layer.device),
    )
    given = {field.name: value for field in fields(row) if (value := getattr(row, field.name))}
    given |= {name: given[name] == 2 for name in ("sort", "paired") if name in given}
    return replace(tiles, **given)


def _neighbours(form: Form[HopperRow], row: HopperRow) -> Iterator[HopperRow]:
    """A step of each field, and every value of a field that is still left to arithmetic."""
    yield from steps(form, row)
    for field in fields(row):
        if not getattr(row, field.name):
            for value in form.allowed[field.name]:
                yield replace(row, **{field.name: value})


HOPPER = Form(
    "hopper",
    HopperRow,
    {
        "token_tile": (0, *WIDTHS),
        "slots": (0, 2, 3, 4),
        "route_tokens": (0, 8, 16, 32, ROUTE_TOKENS),
        "route_splits": (0, 1, 2, 4, 8),
        "choose_tokens": (0, 8, 16, 32, ROUTE_TOKENS),
        "row_group": (0, 1, 2, 4, 8, 16, 32),
        "column_blocks": (0, 1, 2, 4, 8),
        "combine_tokens": (0, 1, 2, 4, 8, 16, 32, 64),
        "sort": (0, 1, 2),
        "paired": (0, 1, 2),
    },
    fitted=complete,
    neighbours=_neighbours,
    supported=lambda device, dtype: dtype != torch.float32 and hopper_kernels_supported(device),
)
