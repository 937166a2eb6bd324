"""Sizes at the edges: not powers of two, one expert or hundreds, K up to 16, weights beyond 2^31 elements; tf32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from moe_layers import INTERPRETER, Place, random_layer, random_tokens, relative_error

from fdmoe_kernels import MoELayer, RoutingRule, Scores, Workspace, baseline_moe, fused_moe, reference_moe, warm_up
from fdmoe_kernels.tiles import Precision


@pytest.mark.parametrize(
    ("experts", "hidden", "intermediate", "top_k", "shared"),
    [
        (1, 16, 16, 1, 0),
        (1, 24, 1, 1, 1),
        (60, 48, 24, 4, 4),
        (384, 32, 16, 8, 1),
        (16, 32, 16, 16, 0),
        (17, 33, 7, 11, 2),
        (3, 2880, 40, 2, 0),
        (3, 40, 2880, 1, 0),
    ],
    ids=str,
)
def test_sizes(experts: int, hidden: int, intermediate: int, top_k: int, shared: int, place: Place) -> None:
    layer = random_layer(experts, hidden, intermediate, top_k, shared=shared, place=place)
    workspace = Workspace(layer, 18)
    for tokens in (1, 18):
        x = random_tokens(layer, tokens, seed=tokens)
        expected = reference_moe(x, layer)
        assert relative_error(fused_moe(x, layer, workspace), expected) < place.tolerance
        assert relative_error(baseline_moe(x, layer), expected) < place.tolerance


def _last_expert_of_many(
    router: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, *, tokens: int = 3, form: str = "portable"
) -> None:
    """A layer of more than 2^31 elements of which the last expert alone is not zero, and is chosen."""
    assert gate_up.numel() > 2**31
    generator = torch.Generator().manual_seed(0)
    for tensor in (gate_up, down):
        values = torch.randn(tensor.shape[1:], generator=generator) / tensor.shape[-1] ** 0.5
        tensor[-1] = values.to(tensor.dtype)
    router.zero_()
    router[-1] = 1.0
    layer = MoELayer(router, gate_up, down, RoutingRule(1, False, Scores.SIGMOID))
    workspace = Workspace(layer, tokens)
    if layer.device.type == "cuda" and torch.cuda.get_device_capability() == (9, 0):
        assert workspace.form(layer, tokens) == form
    x = random_tokens(layer, tokens, seed=0).abs()
    expected = reference_moe(x, layer)
    assert expected.norm() > 1
    tolerance = INTERPRETER.tolerance if layer.dtype == torch.float32 else 6e-3
    assert relative_error(fused_moe(x, layer, workspace), expected) < tolerance
    assert workspace.expert_tokens()[-1].item() == tokens


def test_weights_beyond_32_bits_of_index(tmp_path: Path) -> None:
    experts, size = 1025, 1024

    def sparse(name: str, *shape: int) -> torch.Tensor:
        # a file of holes: only the pages of the last expert come to exist
        count = torch.Size(shape).numel()
        return torch.from_file(str(tmp_path / name), shared=True, size=count).view(shape)

    _last_expert_of_many(
        torch.zeros(experts, size),
        sparse("gate_up", experts, 2 * size, size),
        sparse("down", experts, size, size),
    )


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "form"), [(3, "portable"), (1, "hopper"), (1600, "hopper")])
def test_weights_beyond_32_bits_of_index_on_a_gpu(tokens: int, form: str) -> None:
    experts, size = 65, 4096
    to = {"device": "cuda", "dtype": torch.bfloat16}
    _last_expert_of_many(
        torch.zeros(experts, size, **to),
        torch.zeros(experts, 2 * size, size, **to),
        torch.zeros(experts, size, size, **to),
        tokens=tokens,
        form=form,
    )


SINGLE_GPU = Place("cuda", torch.float32, 1e-5, ())
SINGLE = [
    pytest.param(INTERPRETER, id="interpreter"),
    pytest.param(SINGLE_GPU, id="gpu", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("single", SINGLE)
@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_tf32_is_near_and_chooses_the_same_experts(single: Place, precision: Precision) -> None:
    layer = random_layer(16, 128, 64, 4, place=single)
    exact, rough = Workspace(layer, 300), Workspace(layer, 300)
    # tensor cores cut what is behind the 10 bits off (2.3e-3 on an H200); the interpreter does not
    allowed = {"tf32": 4e-3 if single.device == "cuda" else 2e-3, "tf32x3": single.tolerance}
    for tokens in (1, 40, 300) if single.device == "cuda" else (1, 40):
        x = random_tokens(layer, tokens, seed=tokens)
        expected = reference_moe(x, layer)
        assert relative_error(fused_moe(x, layer, exact), expected) < single.tolerance
        assert relative_error(fused_moe(x, layer, rough, precision=precision), expected) < allowed[precision]
        assert torch.equal(exact.expert_tokens(), rough.expert_tokens())


@pytest.mark.gpu
def test_three_products_of_tf32_keep_what_is_not_finite() -> None:
    """The parts of a number are made by subtraction, which turns an infinity into a NaN."""
    layer = random_layer(4, 64, 32, 2, place=SINGLE_GPU)
    x = random_tokens(layer, 40, seed=1)
    clean = fused_moe(x, layer, Workspace(layer, 40), precision="tf32x3")
    x[3, 5], x[7, 9] = float("inf"), float("nan")
    x[11] *= 1e30
    found = {p: fused_moe(x, layer, Workspace(layer, 40), precision=p) for p in ("ieee", "tf32x3")}
    assert not torch.isfinite(found["tf32x3"][[3, 7]]).all(dim=1).any()
    assert torch.equal(torch.isfinite(found["tf32x3"][11]), torch.isfinite(found["ieee"][11]))
    others = [row for row in range(40) if row not in (3, 7, 11)]
    assert torch.equal(found["tf32x3"][others], clean[others])


@pytest.mark.parametrize(("precision", "most"), [("tf32", 2e-3), ("tf32x3", 1e-5)])
def test_warm_up_proves_tf32(precision: Precision, most: float) -> None:
    layer = random_layer(4, 32, 16, 2)
    workspace = Workspace(layer, 2)
    assert warm_up(layer, workspace, precision=precision) < most
    assert workspace.launches == 2


def test_precisions_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(4, 32, 16, 2)
    with pytest.raises(ValueError, match=r"precision is fp8; ieee or tf32x3 or tf32 is allowed for torch\.float32"):
        fused_moe(torch.zeros(1, 32), layer, Workspace(layer, 1), precision="fp8")  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("fdmoe_kernels.fused.family", lambda: "hip")
        with pytest.raises(ValueError, match=r"precision is tf32x3; ieee or tf32 is allowed on AMD devices"):
            fused_moe(torch.zeros(1, 32), layer, Workspace(layer, 1), precision="tf32x3")
    half = random_layer(4, 32, 16, 2, place=Place("cpu", torch.bfloat16, 0.0, ()))
    with pytest.raises(ValueError, match=r"precision is tf32; ieee is allowed for torch\.bfloat16"):
        fused_moe(torch.zeros(1, 32).bfloat16(), half, Workspace(half, 1), precision="tf32")
