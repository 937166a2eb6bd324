"""A test that asks for `place` runs on the CPU under the interpreter (float32) and, marked `gpu`, on a CUDA device in
float32, bfloat16 and float16. One that asks for `any_place` runs in float16 under the interpreter besides."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from emulated_kernels import COMPILER, Emulator, tensor_map
from moe_layers import GPU, HALF_INTERPRETER, INTERPRETER
from played_driver import play_hopper

from fdmoe_kernels.hopper import plan


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, halves in (("place", []), ("any_place", [pytest.param(HALF_INTERPRETER, id="interpreter-float16")])):
        if name in metafunc.fixturenames:
            places = [pytest.param(INTERPRETER, id="interpreter"), *halves]
            places += [pytest.param(p, id=f"gpu-{str(p.dtype)[6:]}", marks=pytest.mark.gpu) for p in GPU]
            metafunc.parametrize(name, places)


@pytest.fixture(scope="session")
def emulated_builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which(COMPILER) is None:
        pytest.skip(f"{COMPILER} is not installed (Debian and Ubuntu: apt-get install g++)")
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture
def emulator(emulated_builds: Path, monkeypatch: pytest.MonkeyPatch) -> Emulator:
    """CPU layers as if they were on a Hopper device of two multiprocessors, whose launches run here."""
    emulator = Emulator(directory=emulated_builds)
    play_hopper(monkeypatch, emulator)
    monkeypatch.setattr(plan, "multiprocessors", lambda _: 2)
    monkeypatch.setattr(plan, "_tensor_map", tensor_map)
    return emulator
