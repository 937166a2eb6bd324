"""How the portable form is launched: Triton is asked for a build once, and the build is launched from then on."""

from __future__ import annotations

import gc
import inspect
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens

from fdmoe_kernels import Fault, MoELayer, Routing, Workspace, fused_moe, portable
from fdmoe_kernels import _fused_kernel as kernel

NAMES = tuple(inspect.signature(kernel.moe_layer_kernel.fn).parameters)
HALF = Place("cpu", torch.float16, 1e-3, ())


class Compiled:
    """What Triton has compiled: the grid and the arguments of its launches."""

    def __init__(self) -> None:
        self.launched: list[tuple[tuple[int, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.launched.append((grid, dict(zip(NAMES, arguments, strict=True))))


class Triton:
    """Finds a build for each launch, and launches it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.compiled = Compiled()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(**arguments: Any) -> Compiled:
            self.asked.append(arguments)
            return self.compiled

        return run


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> Triton:
    triton = Triton()
    monkeypatch.setattr(portable.kernel, "moe_layer_kernel", triton)
    monkeypatch.setattr(portable, "CompiledKernel", Compiled)
    monkeypatch.setattr(portable, "interpreted", lambda: True)  # beside a GPU, too, what is on the CPU is launched
    return triton


def _layer(**changes: Any) -> MoELayer:
    return replace(random_layer(8, 64, 32, 2, place=HALF), **changes)


def test_a_launch_after_the_first_has_the_same_arguments_by_address(triton: Triton) -> None:
    layer = _layer()
    workspace = Workspace(layer, 64)
    for tokens in (5, 3):
        x = random_tokens(layer, tokens, seed=tokens)
        out = fused_moe(x, layer, workspace, programs=tokens)
    ((grid, launched),) = triton.compiled.launched
    (asked,) = triton.asked
    assert grid == (3, 1, 1)
    own = {
        "x": x.data_ptr(),
        "y": out.data_ptr(),
        "T": 3,
        "row_tiles_bound": workspace.row_tiles_bound(3, asked["ROWS"]),
    }
    page = launched.pop("page")
    assert page is asked["page"]
    expected = {name: portable._by_address(value) for name, value in asked.items() if name in NAMES}
    del expected["page"]
    assert launched == expected | own
    assert workspace.launches == 2


def test_another_build_is_asked_for_where_another_may_serve(triton: Triton) -> None:
    layer = _layer()
    workspace = Workspace(layer, 64)
    x = random_tokens(layer, 4, seed=0)
    weights = torch.full((4, 2), 0.5)
    given = [Routing(torch.zeros(4, 2, dtype=dtype), weights) for dtype in (torch.int32, torch.int64)]
    launches: list[tuple[MoELayer, dict[str, Any]]] = [
        (layer, {}),
        (layer, {"fault": Fault.WRONG}),
        (layer, {"routing": given[0]}),
        (layer, {"routing": given[1]}),
        (_layer(router_bias=torch.zeros(8, dtype=layer.dtype)), {}),
    ]
    for count, (each, options) in enumerate(launches, start=1):
        for _ in range(2):
            fused_moe(x, each, workspace, **options)
        assert len(triton.asked) == len(triton.compiled.launched) == count
    other = Workspace(layer, 64)
    fused_moe(x, layer, other)
    assert triton.asked[-1]["lists"] is other.lists


def test_weights_that_moved_are_found_again(triton: Triton) -> None:
    parameter = torch.nn.Parameter(_layer().down, requires_grad=False)
    layer = _layer(down=parameter)
    workspace = Workspace(layer, 64)
    x = random_tokens(layer, 4, seed=0)
    fused_moe(x, layer, workspace)
    parameter.data = parameter.data.clone()
    for _ in range(2):
        fused_moe(x, layer, workspace)
    assert len(triton.asked) == 2
    assert triton.compiled.launched[-1][1]["down"] == parameter.data_ptr()


def test_what_was_found_keeps_neither_layer_nor_workspace(triton: Triton) -> None:
    layer = _layer()
    workspace = Workspace(layer, 64)
    fused_moe(random_tokens(layer, 4, seed=0), layer, workspace)
    triton.asked.clear()
    gone = [weakref.ref(each) for each in (layer, layer.down, workspace, workspace.act)]
    del layer
    gc.collect()
    assert [each() is None for each in gone] == [True, True, False, False]
    del workspace
    gc.collect()
    assert [each() is None for each in gone] == [True] * 4
