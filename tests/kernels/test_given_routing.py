"""Routings made elsewhere: any experts, any weights, in bounds whatever they hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens, relative_error, with_everything

from fdmoe_kernels import Routing, Workspace, baseline_moe, fused_moe, reference_moe, warm_up
from fdmoe_kernels.routing import choose
from fdmoe_kernels.tiles import token_counts_of_all_rows

E, H, I, K = 6, 64, 32, 3  # noqa: E741


def _random_routing(tokens: int, dtype: torch.dtype, place: Place, *, seed: int = 0) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    experts = torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(tokens)])
    weights = torch.randn(tokens, K, generator=generator)
    return Routing(experts.to(device=place.device, dtype=dtype), weights.to(place.device))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shared", [0, 2])
def test_all_three_follow_it(shared: int, dtype: torch.dtype, place: Place) -> None:
    layer = random_layer(E, H, I, K, shared=shared, place=place)
    if shared:
        layer = with_everything(layer)
    workspace = Workspace(layer, 37)
    for tokens in (1, 37):
        routing = _random_routing(tokens, dtype, place)
        x = random_tokens(layer, tokens, seed=tokens)
        before = workspace.expert_tokens().clone()
        y = fused_moe(x, layer, workspace, routing=routing)
        expected = torch.zeros_like(x, dtype=torch.float32)
        for k in range(K):  # one expert at a time, through the layer's own router
            one = Routing(routing.experts[:, k : k + 1].contiguous(), routing.weights[:, k : k + 1].contiguous())
            single = replace(layer, routing=replace(layer.routing, top_k=1))
            expected += reference_moe(x, single, routing=one)
        nobody = Routing(torch.full_like(routing.experts[:, :1], -1), torch.ones(tokens, 1, device=place.device))
        expected -= (K - 1) * reference_moe(x, single, routing=nobody)  # the shared experts, once each time
        assert relative_error(reference_moe(x, layer, routing=routing), expected) < 1e-5
        assert relative_error(y, expected) < place.tolerance
        assert relative_error(baseline_moe(x, layer, routing=routing), expected) < place.tolerance
        counts = torch.bincount(routing.experts.flatten(), minlength=E).tolist()
        assert (workspace.expert_tokens() - before).tolist() == counts + [tokens] * shared


def test_the_routers_own_choice_given_is_the_routers(place: Place) -> None:
    layer = random_layer(E, H, I, K, place=place)
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=0)
    routing = choose(x.float() @ layer.router.float().T, layer.routing)
    routed = fused_moe(x, layer, workspace)
    given = fused_moe(x, layer, workspace, routing=routing)
    assert relative_error(given, routed) < place.tolerance
    # nothing of it is left behind
    assert torch.equal(fused_moe(x, layer, workspace), routed)


def test_experts_that_do_not_exist_and_weights_of_zero_contribute_nothing(place: Place) -> None:
    layer = random_layer(E, H, I, K, shared=1, place=place)
    workspace = Workspace(layer, 9)
    x = random_tokens(layer, 9, seed=1)
    rows = workspace.part if workspace.hopper is None else workspace.hopper.sorted
    rows.fill_(float("nan"))  # what an entry that is not computed would read
    routing = _random_routing(9, torch.int64, place)
    for row, expert in enumerate((-1, E, E + 1, 2**31, 2**32, 2**32 + 1, -(2**63))):
        routing.experts[row, row % K] = expert
    routing.weights[7, 1] = 0.0
    routing.experts[8] = -1
    y = fused_moe(x, layer, workspace, routing=routing)
    expected = reference_moe(x, layer, routing=routing)
    assert torch.isfinite(expected).all()
    assert relative_error(y, expected) < place.tolerance
    assert relative_error(baseline_moe(x, layer, routing=routing), expected) < place.tolerance
    shared_only = reference_moe(x[8:], layer, routing=Routing(routing.experts[8:], routing.weights[8:]))
    assert relative_error(y[8:], shared_only) < place.tolerance
    entered = (routing.experts >= 0) & (routing.experts < E) & (routing.weights != 0)
    assert workspace.expert_tokens()[:E].sum().item() == entered.sum().item() == 9 * K - 11
    assert workspace.control.count_nonzero().item() == 0


def test_an_expert_named_twice_gets_the_sum_of_the_weights(place: Place) -> None:
    layer = random_layer(E, H, I, K, place=place)
    workspace = Workspace(layer, 8)
    x = random_tokens(layer, 8, seed=2)
    # all entries on one expert: three times as many as its list has room for
    experts = torch.full((8, K), 4, dtype=torch.int32, device=place.device)
    experts[3] = torch.tensor([1, 4, 1])
    weights = torch.randn(8, K, generator=torch.Generator().manual_seed(3)).to(place.device)
    routing = Routing(experts, weights)
    y = fused_moe(x, layer, workspace, routing=routing)
    expected = reference_moe(x, layer, routing=routing)
    assert relative_error(y, expected) < place.tolerance
    assert relative_error(baseline_moe(x, layer, routing=routing), expected) < place.tolerance
    assert workspace.expert_tokens().tolist() == [0, 1, 0, 0, 8, 0]


def test_a_nan_weight_stays_in_its_row(place: Place) -> None:
    layer = random_layer(E, H, I, K, place=place)
    workspace = Workspace(layer, 4)
    x = random_tokens(layer, 4, seed=3)
    routing = _random_routing(4, torch.int32, place)
    clean = fused_moe(x, layer, workspace, routing=routing)
    routing.weights[2, 1] = float("nan")
    y = fused_moe(x, layer, workspace, routing=routing)
    assert torch.isnan(y[2]).all()
    for row in (0, 1, 3):
        assert torch.equal(y[row], clean[row])


def test_warm_up_proves_the_builds_that_will_be_served(place: Place) -> None:
    layer = random_layer(E, H, I, K, place=place)
    workspace = Workspace(layer, 30)
    alone = Workspace(layer, 30)
    plain = warm_up(layer, alone)
    assert warm_up(layer, workspace, given=(torch.int32, torch.int64)) >= plain
    rows = token_counts_of_all_rows(layer, 30, "ieee")
    assert rows[-1] == 30
    # where there is another form than the portable one, it has a token count of its own
    assert alone.launches == len({*rows, 2} if workspace.hopper else rows)
    assert workspace.launches == 3 * alone.launches, "the layer's own router and both dtypes"


@pytest.mark.parametrize(
    ("experts", "weights", "message"),
    [
        (torch.zeros(2, 2).int(), torch.zeros(2, 3), r"routing.experts has shape \(2, 2\); \[2, 3\] is needed"),
        (torch.zeros(7).int()[1:].view(2, 3), torch.zeros(2, 3), "routing.experts is at address .* 16-byte alignment"),
    ],
)
def test_routings_that_do_not_fit_are_named(experts: torch.Tensor, weights: torch.Tensor, message: str) -> None:
    layer = random_layer(E, H, I, K)
    with pytest.raises(ValueError, match=message):
        fused_moe(torch.zeros(2, H), layer, Workspace(layer, 2), routing=Routing(experts, weights))


@pytest.mark.parametrize("run", [baseline_moe, reference_moe])
def test_the_torch_paths_refuse_them_too(run) -> None:  # type: ignore[no-untyped-def]
    layer = random_layer(E, H, I, K)
    with pytest.raises(ValueError, match=r"routing.weights has shape \(3, 3\); \[2, 3\] is needed"):
        run(torch.zeros(2, H), layer, routing=Routing(torch.zeros(2, 3).int(), torch.zeros(3, 3)))
