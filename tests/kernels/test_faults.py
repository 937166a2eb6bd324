"""Builds that go wrong on purpose go wrong in just their way, and the next launch is right."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens, relative_error

from fdmoe_kernels import Fault, Workspace, fused_moe, reference_moe
from fdmoe_kernels.hopper import build

# 5 and 100 tokens: on Hopper one form of the kernel serves the one, another the other
SIZES = [5, 100]

_ILLEGAL = """
import sys, torch
from moe_layers import INTERPRETER, Place, random_layer, random_tokens
from fdmoe_kernels import Fault, Workspace, fused_moe
place = INTERPRETER if sys.argv[1] == "cpu" else Place("cuda", torch.bfloat16, 6e-3, ())
layer = random_layer(8, 64, 32, 2, place=place)
x = random_tokens(layer, int(sys.argv[2]), seed=1)
workspace = Workspace(layer, x.shape[0])
fused_moe(x, layer, workspace)
print("right", flush=True)
fused_moe(x, layer, workspace, fault=Fault.ILLEGAL)
if place is not INTERPRETER:
    torch.cuda.synchronize()
print("still here")
"""


def _wrong_rows(y: torch.Tensor, expected: torch.Tensor, tolerance: float) -> int:
    errors = (y.float() - expected).norm(dim=1) / expected.norm(dim=1)
    return int((~(errors <= 10 * tolerance)).sum())


def _bounded(place: Place, tokens: int) -> int:
    """The interpreter has one form of the kernel, and takes its time."""
    return tokens if place.device == "cuda" else min(tokens, 48)


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("fault", [Fault.NAN, Fault.WRONG])
def test_a_spoilt_output_tile_is_spoilt_once(place: Place, tokens: int, fault: Fault) -> None:
    tokens = _bounded(place, tokens)
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, tokens)
    x = random_tokens(layer, tokens, seed=1)
    expected = reference_moe(x, layer)
    y = fused_moe(x, layer, workspace, fault=fault).clone()
    assert torch.isnan(y).any() == (fault is Fault.NAN)
    assert torch.isfinite(y).all() == (fault is Fault.WRONG)
    assert 1 <= _wrong_rows(y, expected, place.tolerance) <= tokens
    assert relative_error(fused_moe(x, layer, workspace), expected) < place.tolerance


@pytest.mark.parametrize("tokens", SIZES)
def test_a_slow_launch_is_right(place: Place, tokens: int) -> None:
    tokens = _bounded(place, tokens)
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, tokens)
    x = random_tokens(layer, tokens, seed=1)
    assert relative_error(fused_moe(x, layer, workspace, fault=Fault.SLOW), reference_moe(x, layer)) < place.tolerance


def test_an_illegal_store_ends_the_process_in_the_interpreter() -> None:
    done = _run_illegal("cpu", 5)
    assert done.stdout == "right\n", done.stderr
    assert done.returncode == -signal.SIGSEGV


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", SIZES)
def test_an_illegal_store_costs_the_context_on_a_gpu(tokens: int) -> None:
    done = _run_illegal("cuda", tokens)
    assert done.stdout == "right\n"
    assert done.returncode == 1
    assert "illegal memory access" in done.stderr


def _run_illegal(device: str, tokens: int) -> subprocess.CompletedProcess[str]:
    # the child finds this suite's modules where this process does
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-c", _ILLEGAL, device, str(tokens))
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_a_faulty_build_of_the_hopper_form_is_another_one(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    """That they compile, and differ from what serves; what serves has no fault code at all. Of the widths of products
    three are as good as all."""
    monkeypatch.setattr(build, "WIDTHS", (16, 64, 256))
    assert build.compile_layer(torch.bfloat16, fault) != build.compile_layer(torch.bfloat16)
