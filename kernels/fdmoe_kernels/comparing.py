"""Whether two paths gave the same rows: as a whole, and row by row.

As a whole alone a few wrong rows of a large batch go unseen: a tile of 16 tokens and 64 columns that is noise makes
4096 rows of 2048 columns differ by 0.016, and its own rows by 0.3. Row by row alone, what is wrong everywhere by a
little does. A row whose token could as well have gone to another expert tells nothing: the paths add its logits in
different orders, and each may be right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fdmoe_kernels.baseline import router_logits
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import choose
from fdmoe_kernels.tiles import Precision

# ||fused - baseline|| / ||baseline||: each path is within half of this of float32 (measured: 3e-3 in bfloat16)
TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
# of one row, whose rounding errors are an average of fewer numbers
ROW_FACTOR = 2.5
# a row smaller than this part of the median row is judged by that: its experts' rows may cancel, their errors do not
_SMALL_ROW = 0.25
# of a token's largest logit: the paths' logits are sums in float32 of the same products, and differ by 1e-6 or so
_CLOSE = 1e-4
_DRAWS = 32
# a fault of the kernel makes more rows wrong than close calls would
_EXAMINED = 128


def tolerance(dtype: torch.dtype, precision: Precision = "ieee") -> float:
    """Of the difference of the two paths. tf32 has 11 bits of mantissa, as float16 has."""
    return TOLERANCE[torch.float16 if precision == "tf32" else dtype]


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two paths over `rows` rows: those where the baseline is finite, less close calls of the router that differ,
    which are `excused`.

    whole  ||fused - baseline|| / ||baseline||         row  the largest of one row, in the size of a row
    """

    rows: int
    whole: float
    row: float
    excused: int = 0

    def within(self, allowed: float) -> bool:
        """NaN is not. Without a row nothing was compared, and nothing is known to be wrong."""
        return self.rows == 0 or (self.whole <= allowed and self.row <= ROW_FACTOR * allowed)


def compare(
    fused: torch.Tensor, baseline: torch.Tensor, x: torch.Tensor, layer: MoELayer, *,
    precision: Precision = "ieee", routed: bool = True,
) -> Difference:  # fmt: skip
    """Of both paths' rows [T, H] for x [T, H], T at least 1; `routed`: by the layer's router. Waits for the device
    once, and more often where a row is off."""
    rows = torch.isfinite(baseline).all(dim=1)
    found, off = _difference(fused, baseline, rows)
    allowed = tolerance(layer.dtype, precision)
    if found.within(allowed) or not routed:
        return found
    # what is no number is no other expert's either
    worst, suspects = torch.where(off.isfinite() & (off > allowed), off, 0).topk(min(_EXAMINED, off.shape[0]))
    excused = suspects[(worst > 0) & close_calls(x[suspects], layer)]
    rows[excused] = False
    return replace(_difference(fused, baseline, rows)[0], excused=excused.shape[0])


def difference(found: torch.Tensor, expected: torch.Tensor) -> Difference:
    """Of two results [T, H] of tokens that are no close calls, T at least 1, over rows where `expected` is finite."""
    return _difference(found, expected, torch.isfinite(expected).all(dim=1))[0]


def close_calls(x: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    """[T] bool: of which tokens of x [T, H] the router would choose other experts if its logits were off by 1e-4 of the
    largest, which no two ways of adding them are."""
    logits = router_logits(x, layer)
    chosen = choose(logits, layer.routing, layer.correction_bias).experts.sort(dim=1).values
    generator = torch.Generator(device=x.device).manual_seed(0)
    reach = _CLOSE * torch.nan_to_num(logits, 0.0, 0.0, 0.0).abs().amax(dim=1, keepdim=True)
    close = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
    for _ in range(_DRAWS):
        noise = torch.empty_like(logits).uniform_(-1, 1, generator=generator) * reach
        experts = choose(logits + noise, layer.routing, layer.correction_bias).experts
        close |= (experts.sort(dim=1).values != chosen).any(dim=1)
    return close


def _difference(found: torch.Tensor, expected: torch.Tensor, rows: torch.Tensor) -> tuple[Difference, torch.Tensor]:
    """Over these rows [T] bool, and by how much each is off [T]; what is said of others is nothing."""
    right = torch.where(rows[:, None], expected.float(), 0)
    apart = torch.where(rows[:, None], found.float(), 0) - right
    size, sizes = right.norm(), torch.linalg.vector_norm(right, dim=1)
    tiny = torch.finfo(torch.float32).tiny
    usual = torch.where(rows, sizes, float("nan")).nanmedian()
    off = torch.linalg.vector_norm(apart, dim=1) / torch.maximum(sizes, _SMALL_ROW * usual).clamp_min(tiny)
    off = torch.where(rows, off, 0)
    count, whole, row = torch.stack((rows.sum(), apart.norm() / size.clamp_min(tiny), off.max())).tolist()
    return Difference(int(count), whole, row), off
