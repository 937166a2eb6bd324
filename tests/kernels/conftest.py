"""A test that asks for `place` runs on the CPU under the interpreter (float32) and, marked `gpu`, on a CUDA device in
float32, bfloat16 and float16. One that asks for `any_place` runs in float16 under the interpreter besides."""

from __future__ import annotations

import pytest
from moe_layers import GPU, HALF_INTERPRETER, INTERPRETER


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, halves in (("place", []), ("any_place", [pytest.param(HALF_INTERPRETER, id="interpreter-float16")])):
        if name in metafunc.fixturenames:
            places = [pytest.param(INTERPRETER, id="interpreter"), *halves]
            places += [pytest.param(p, id=f"gpu-{str(p.dtype)[6:]}", marks=pytest.mark.gpu) for p in GPU]
            metafunc.parametrize(name, places)
