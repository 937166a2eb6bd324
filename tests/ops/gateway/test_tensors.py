"""Numbers of a JSON document become the nearest values of each datatype."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.gateway.tensors import DTYPES, from_numbers, to_numbers

EVERY_BF16 = np.arange(0x7F80, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)


@pytest.mark.parametrize(
    ("value", "datatype", "stored"),
    [
        (1 + 2.0**-8, "BF16", 1.0),  # a tie: to even
        (1 + 3 * 2.0**-8, "BF16", 1 + 2.0**-6),  # a tie: to even
        (1 + 2.0**-8 + 2.0**-40, "BF16", 1 + 2.0**-7),  # by way of float32 it would be a tie
        (-(1 + 2.0**-8 + 2.0**-40), "BF16", -(1 + 2.0**-7)),
        (1 + 2.0**-11, "FP16", 1.0),
        (1 + 2.0**-11 + 2.0**-40, "FP16", 1 + 2.0**-10),
        (65519.0, "FP16", 65504.0),
        (0.1, "FP32", 0.10000000149011612),
        (-0.0, "BF16", -0.0),
        (1e-50, "FP32", 0.0),
    ],
)
def test_rounding(value: float, datatype: str, stored: float) -> None:
    found = to_numbers(from_numbers([value], datatype), datatype)
    assert str(found) == str([stored])


@pytest.mark.parametrize(
    ("value", "datatype", "text"),
    [
        (65520.0, "FP16", "65520 is too large for FP16; at most 65504 is allowed"),
        (-1e39, "FP32", "-1e\\+39 is too large for FP32; at most 3.40282e\\+38 is allowed"),
        (1e300, "BF16", "1e\\+300 is too large for BF16; at most 3.38953e\\+38 is allowed"),
    ],
)
def test_too_large(value: float, datatype: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        from_numbers([1.0, value], datatype)


@given(st.floats(0, 3.3895e38))
def test_bf16_is_the_nearest_of_all_there_are(value: float) -> None:
    (stored,) = to_numbers(from_numbers([value], "BF16"), "BF16")
    index = int(np.searchsorted(EVERY_BF16, value))
    neighbours = EVERY_BF16[max(index - 1, 0) : index + 1].tolist()
    distance = {candidate: abs(Fraction(candidate) - Fraction(value)) for candidate in neighbours}
    assert distance[stored] == min(distance.values())


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_every_finite_value_goes_out_and_comes_back(datatype: str) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        finite = patterns[np.isfinite(patterns.view(DTYPES[datatype]).astype(np.float64))]
    assert from_numbers(to_numbers(finite.tobytes(), datatype), datatype) == finite.tobytes()
