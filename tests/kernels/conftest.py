"""A test that asks for `place` runs on the CPU under the interpreter (float32) and, marked `gpu`, on a CUDA device in
float32, bfloat16 and float16."""

from __future__ import annotations

import pytest
from moe_layers import GPU, INTERPRETER


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "place" in metafunc.fixturenames:
        places = [pytest.param(INTERPRETER, id="interpreter")]
        places += [pytest.param(p, id=f"gpu-{str(p.dtype)[6:]}", marks=pytest.mark.gpu) for p in GPU]
        metafunc.parametrize("place", places)
