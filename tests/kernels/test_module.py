"""The layer as a module, as torch.compile and CUDA graphs take it."""

from __future__ import annotations

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens

from fdmoe_kernels import FusedMoE, Workspace, fused_moe
from fdmoe_kernels.module import _fused_moe


def test_torch_compile_takes_it_whole_for_any_number_of_tokens(place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, 40)
    module = FusedMoE(layer, workspace)
    compiled = torch.compile(lambda x: module(x * 2) + 1, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (3, 40, 17):
        x = random_tokens(layer, tokens, seed=tokens)
        assert torch.equal(compiled(x), fused_moe(x * 2, layer, workspace) + 1)


def test_its_fake_says_what_it_gives(place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    module = FusedMoE(layer, Workspace(layer, 4))
    torch.library.opcheck(_fused_moe, (random_tokens(layer, 4, seed=0), module.handle), test_utils="test_faketensor")
    torch.library.opcheck(_fused_moe, (random_tokens(layer, 4, seed=0), module.handle), test_utils="test_schema")


def test_a_workspace_for_another_layer_is_refused() -> None:
    layer = random_layer(8, 64, 32, 2)
    with pytest.raises(ValueError, match=r"\(E, S, H, I, K\) = \(8, 0, 64, 32, 2\)"):
        FusedMoE(random_layer(8, 64, 16, 2), Workspace(layer, 4))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 300])
def test_a_compiled_module_is_captured(tokens: int) -> None:
    layer = random_layer(16, 128, 64, 4, place=Place("cuda", torch.bfloat16, 6e-3, ()))
    module = FusedMoE(layer, Workspace(layer, tokens))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random_tokens(layer, tokens, seed=0)
    expected = compiled(x).clone()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = compiled(x)
    y.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, expected)
