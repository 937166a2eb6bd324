"""Numbers of a JSON document to and from the bytes of a tensor.

Little-endian, row-major, as the Open Inference Protocol's binary form has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


def from_numbers(values: Sequence[float], datatype: str) -> bytes:
    """The tensor's bytes, each value rounded once, to nearest, ties to even.

    Raises ValueError for a finite value that is too large for the datatype.
    """
    exact = np.array(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        source = _round_to_odd(exact) if datatype == "BF16" else exact
        rounded = source.astype(DTYPES[datatype])
    finite = np.isfinite(rounded)
    if not finite.all():
        dtype = DTYPES[datatype]
        largest = float(ml_dtypes.finfo(dtype).max)
        raise ValueError(f"{exact[~finite][0]:g} is too large for {datatype}; at most {largest:g} is allowed")
    return rounded.tobytes()


def to_numbers(raw: memoryview | bytes, datatype: str) -> list[float]:
    """The tensor's values, flat and exact."""
    stored = np.frombuffer(raw, dtype=DTYPES[datatype])
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one, which is no news
        numbers: list[float] = stored.astype(np.float64).tolist()
    return numbers


def _round_to_odd(exact: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """float32 whose last bit is set where it is not exact.

    ml_dtypes goes from float64 to bfloat16 by way of float32 and so rounds twice: 1 + 2^-8 + 2^-40 becomes the tie
    1 + 2^-8, and that becomes 1, where 1 + 2^-7 is nearest. With 16 spare bits, a first rounding to odd never makes a
    tie (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    nearest = exact.astype(np.float32)
    bits = nearest.view(np.uint32)
    bits -= np.abs(nearest.astype(np.float64)) > np.abs(exact)  # towards zero
    bits |= nearest.astype(np.float64) != exact
    return nearest
