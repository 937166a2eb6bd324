"""The layer as a module, as torch.compile and CUDA graphs take it."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens
from torch._dynamo.utils import counters

from fdmoe_kernels import FusedMoE, Routing, Workspace, fused_moe
from fdmoe_kernels.module import _fused_moe

# the first leaves the operators as they are; the second is torch.compile's own, which compiles those around
BACKENDS = ["aot_eager", "inductor"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_compile_takes_it_whole_for_any_number_of_tokens(place: Place, backend: str) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, 40)
    module = FusedMoE(layer, workspace)
    compiled = torch.compile(lambda x: module(x * 2) + 1, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (3, 40, 17):
        x = random_tokens(layer, tokens, seed=tokens)
        assert torch.equal(compiled(x), fused_moe(x * 2, layer, workspace) + 1)


class Block(torch.nn.Module):
    """As models compile their blocks: one after the other, each by itself. What it does beside the layer is
    rounded alike, compiled or not."""

    def __init__(self, moe: FusedMoE) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((64,), 2.0, dtype=moe.layer.dtype, device=moe.layer.device))
        self.moe = moe

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.moe(self.scale * x)


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_blocks_of_a_model_share_what_is_compiled(place: Place, backend: str) -> None:
    torch.compiler.reset()
    layers = [random_layer(8, 64, 32, 2, place=place, seed=seed) for seed in range(12)]
    workspace = Workspace(layers[0], 4)
    blocks = [Block(FusedMoE(layer, workspace)) for layer in layers]
    x = random_tokens(layers[0], 4, seed=0)
    with torch.no_grad():
        expected = [block(x) for block in blocks]
        compiled_before = counters["stats"]["unique_graphs"]
        for block, y in zip(blocks, expected, strict=True):
            block.compile(fullgraph=True, backend=backend)
            torch.testing.assert_close(block(x), y)
    assert counters["stats"]["unique_graphs"] - compiled_before == 1
    assert len({tuple(y[0, :4].tolist()) for y in expected}) == 12, "each its own weights"


def test_a_copy_has_weights_of_its_own() -> None:
    layer = random_layer(8, 64, 32, 2)
    module = FusedMoE(layer, Workspace(layer, 4), precision="tf32x3", programs=3)
    twin = copy.deepcopy(module)
    assert (twin.workspace, twin.precision, twin.programs) == (module.workspace, "tf32x3", 3)
    x = random_tokens(layer, 4, seed=0)
    expected = module(x)
    del module
    gc.collect()
    layer.down.zero_()
    assert torch.equal(twin(x), expected)


def test_it_stays_where_its_layer_is() -> None:
    layer = random_layer(8, 64, 32, 2)
    module = FusedMoE(layer, Workspace(layer, 4))
    x = random_tokens(layer, 4, seed=0)
    expected = module(x)
    assert torch.equal(module.double().to("meta")(x), expected)
    assert module.state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_routing_made_in_the_compiled_region(place: Place, dtype: torch.dtype) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, 5)
    module = FusedMoE(layer, workspace)

    def route(x: torch.Tensor) -> Routing:
        weights, experts = torch.topk(torch.softmax(x.float() @ layer.router.float().T, dim=1), 2)
        return Routing(experts.to(dtype), weights.contiguous())

    compiled = torch.compile(lambda x: module(x, route(x)), fullgraph=True, backend="aot_eager")
    x = random_tokens(layer, 5, seed=1)
    assert torch.equal(compiled(x), fused_moe(x, layer, workspace, routing=route(x)))
    assert not torch.equal(compiled(x), module(x)), "the layer's own router renormalises"


def test_precision_and_programs_are_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(8, 64, 32, 2)
    seen: dict[str, object] = {}

    def spy(x: torch.Tensor, *_: object, **options: object) -> torch.Tensor:
        seen.update(options)
        return torch.zeros_like(x)

    monkeypatch.setattr("fdmoe_kernels.module.fused_moe", spy)
    FusedMoE(layer, Workspace(layer, 4), precision="tf32x3", programs=3)(random_tokens(layer, 4, seed=0))
    assert seen == {"routing": None, "precision": "tf32x3", "programs": 3}


@pytest.mark.parametrize("given", [False, True], ids=["routed", "given"])
def test_its_fake_says_what_it_gives(place: Place, given: bool) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    module = FusedMoE(layer, Workspace(layer, 4))
    experts = torch.tensor([[0, 1]] * 4, device=layer.device) if given else None
    weights = torch.full((4, 2), 0.5, device=layer.device) if given else None
    arguments = (random_tokens(layer, 4, seed=0), experts, weights, module.key)
    torch.library.opcheck(_fused_moe, arguments, test_utils="test_faketensor")
    torch.library.opcheck(_fused_moe, arguments, test_utils="test_schema")


def test_a_workspace_for_another_layer_is_refused() -> None:
    layer = random_layer(8, 64, 32, 2)
    message = r"\(E, S, H, I, K\) = \(8, 0, 64, 32, 2\), .*; the layer has \(8, 0, 64, 16, 2\), torch\.float32 on cpu$"
    with pytest.raises(ValueError, match=message):
        FusedMoE(random_layer(8, 64, 16, 2), Workspace(layer, 4))


def test_a_precision_that_is_not_there_is_refused_when_the_module_is_made() -> None:
    layer = random_layer(8, 64, 32, 2)
    with pytest.raises(ValueError, match=r"^precision is fp8; ieee or tf32x3 or tf32 is allowed for torch\.float32$"):
        FusedMoE(layer, Workspace(layer, 4), precision="fp8")  # type: ignore[arg-type]


@pytest.mark.gpu
def test_the_graphs_that_torch_compile_makes_take_several_modules() -> None:
    torch.compiler.reset()
    layers = [random_layer(16, 128, 64, 4, place=Place("cuda", torch.bfloat16, 6e-3, ()), seed=seed) for seed in (1, 2)]
    workspace = Workspace(layers[0], 4)
    modules = [FusedMoE(layer, workspace) for layer in layers]
    compiled = [torch.compile(module, fullgraph=True, mode="reduce-overhead") for module in modules]
    for turn in range(4):
        x = random_tokens(layers[0], 4, seed=turn)
        for module, captured in zip(modules, compiled, strict=True):
            torch.compiler.cudagraph_mark_step_begin()
            assert torch.equal(captured(x), module(x))


@pytest.mark.gpu
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tokens", [1, 300])
def test_a_compiled_module_is_captured(tokens: int, backend: str) -> None:
    layer = random_layer(16, 128, 64, 4, place=Place("cuda", torch.bfloat16, 6e-3, ()))
    module = FusedMoE(layer, Workspace(layer, tokens))
    compiled = torch.compile(module, fullgraph=True, backend=backend)
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
