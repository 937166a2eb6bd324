"""Token buckets: sizes of batches that are alike. Stall times are learned, and the fused path is proven, per bucket."""

from __future__ import annotations


def token_bucket(tokens: int) -> int:
    """The power of two at or above `tokens`; 1 for none."""
    return 1 << max(tokens - 1, 0).bit_length()
