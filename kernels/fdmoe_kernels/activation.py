"""What stands between the two projections of an expert: SwiGLU and its variants."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SwiGLU:
    """gate * sigmoid(alpha * gate) * (up + up_offset), elementwise over an expert's two projections, in float32.

    With a `limit`, first gate = min(gate, limit) and up = max(-limit, min(up, limit)). The defaults are SiLU times up;
    gpt-oss has SwiGLU(1.702, 7.0, 1.0). Raises ValueError for a number that is not finite and for a limit that is not
    above 0.
    """

    alpha: float = 1.0
    limit: float | None = None
    up_offset: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("up_offset", self.up_offset)):
            if not math.isfinite(value):
                raise ValueError(f"{name} is {value}; a finite number is needed")
        if self.limit is not None and not 0 < self.limit < math.inf:
            raise ValueError(f"limit is {self.limit}; a finite number above 0, or None, is needed")


SILU = SwiGLU()
