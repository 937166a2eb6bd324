"""How the Hopper kernel cuts its work. All of it is decided at run time: no value here makes another build."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fdmoe_kernels.hopper.build import WIDTHS

_DEPTH = 64
_EXPERTS_PER_TILE = 128


@dataclass(frozen=True, slots=True)
class HopperTiles:
    """token_tile: the most tokens of a GEMM tile, one of build.WIDTHS; slots: items a CTA looks ahead, 2 to 4;
    route_tokens, route_splits: tokens of a router tile, and parts of its inner dimension; row_group: row tiles whose CTAs
    share the weights in L2; column_blocks: parts of H that are combined one by one, 1 to 8; combine_tokens: tokens of a
    combine item; sort: the first up tile of some rows leaves them sorted by expert for the others."""

    token_tile: int
    slots: int
    route_tokens: int
    route_splits: int
    row_group: int
    column_blocks: int
    combine_tokens: int
    sort: bool


def default_tiles(
    tokens: int, *, experts: int, top_k: int, hidden_size: int, multiprocessors: int
) -> HopperTiles:
    """What fits a batch by arithmetic alone; the tuning table holds what was measured to be better."""
    average = tokens * top_k / experts
    # most experts' tokens in one tile: the mean and three standard deviations of an even router
    wanted = min(average + 3 * math.sqrt(average), tokens)
    token_tile = next((width for width in WIDTHS if width >= wanted), WIDTHS[-1])
    route_tokens = min(64, token_tile, max(8, 1 << math.ceil(math.log2(max(tokens / 64, 1)))))
    blocks = math.ceil(experts / _EXPERTS_PER_TILE)
    free = multiprocessors / (math.ceil(tokens / route_tokens) * blocks)
    steps = math.ceil(hidden_size / _DEPTH)
    return HopperTiles(
        token_tile=token_tile,
        slots=4 if token_tile <= 64 else 2,
        route_tokens=route_tokens,
        route_splits=max(1, min(int(free), 4 if tokens > 8 else 8, steps)),
        row_group=8,
        column_blocks=2 if tokens >= 4096 else 1,
        combine_tokens=max(1, min(16, math.ceil(tokens / multiprocessors))),
        sort=token_tile > 128,
    )
