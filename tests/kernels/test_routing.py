"""The routing rule: by hand in small cases, and the kernel's choice against torch's in all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moe_layers import INTERPRETER, Place, random_layer, random_tokens, relative_error, with_everything

from fdmoe_kernels import MoELayer, RoutingRule, Scores, Workspace, baseline_moe, fused_moe, reference_moe
from fdmoe_kernels.routing import choose

LOG = [[0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 4.0]]  # logits of one token; 8 experts
E0, E1, E2, E3, E4 = (2.718281828**n for n in range(5))
TOTAL = E0 * 4 + E1 + E2 + E3 + E4


def sigmoid(number: float) -> float:
    return 1 / (1 + 2.718281828**-number)


@pytest.mark.parametrize(
    ("rule", "correction", "experts", "weights"),
    [
        (RoutingRule(2, False), None, [7, 3], [E4 / TOTAL, E3 / TOTAL]),
        (RoutingRule(2, True), None, [7, 3], [E4 / (E4 + E3), E3 / (E4 + E3)]),
        (RoutingRule(2, False, scaling=3.0), None, [7, 3], [3 * E4 / TOTAL, 3 * E3 / TOTAL]),
        (RoutingRule(2, False, Scores.SIGMOID), None, [7, 3], [sigmoid(4), sigmoid(3)]),
        # the correction chooses, and does not weigh
        (RoutingRule(2, False, Scores.SIGMOID), [9, 0, 0, 0, 0, 0, 0, 0], [0, 7], [sigmoid(0), sigmoid(4)]),
        (RoutingRule(2, False), [0, 9, 0, 0, 0, 0, 0, 0], [1, 7], [E1 / TOTAL, E4 / TOTAL]),
        # two groups of four: by its best expert the second, by its two best the first, which excludes expert 7
        (RoutingRule(2, False, groups=2), None, [7, 4], [E4 / TOTAL, E0 / TOTAL]),
        (
            RoutingRule(2, False, Scores.SIGMOID, groups=2, group_scores=2),
            None, [3, 2], [sigmoid(3), sigmoid(2)],
        ),
        # ties: the lower index, of experts and of groups
        (RoutingRule(3, False), [0, 0, 0, 0, 9, 9, 9, 0], [4, 5, 6], [E0 / TOTAL] * 3),
        (RoutingRule(2, False, groups=4), [9, 0, 0, 0, 9, 0, 0, 0], [0, 1], [E0 / TOTAL, E1 / TOTAL]),
    ],
)  # fmt: skip
def test_the_rule_by_hand(
    rule: RoutingRule, correction: list[float] | None, experts: list[int], weights: list[float]
) -> None:
    bias = None if correction is None else torch.tensor(correction).float()
    routing = choose(torch.tensor(LOG), rule, bias)
    assert routing.experts.tolist() == [experts]
    assert routing.weights[0].tolist() == pytest.approx(weights, rel=1e-6)


def test_softmax_over_the_chosen_is_the_renormalised_softmax_over_all() -> None:
    logits = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * 3
    values, experts = logits.topk(4)
    routing = choose(logits, RoutingRule(4, renormalize=True))
    assert torch.equal(routing.experts, experts)
    assert torch.allclose(routing.weights, torch.softmax(values, dim=1), rtol=1e-6)


def test_logits_tell_apart_what_softmax_rounds_to_zero() -> None:
    routing = choose(torch.tensor([[0.0, -200.0, -150.0]]), RoutingRule(2, False))
    assert routing.experts.tolist() == [[0, 2]]
    assert routing.weights.tolist() == [[1.0, 0.0]]


RULES = {
    "softmax": RoutingRule(3, False),
    "sigmoid": RoutingRule(3, True, Scores.SIGMOID, scaling=2.5),
    "softmax groups": RoutingRule(5, True, groups=4, top_groups=2),
    "softmax groups by two": RoutingRule(4, False, groups=3, top_groups=2, group_scores=2),
    "sigmoid groups": RoutingRule(6, True, Scores.SIGMOID, groups=6, top_groups=4, group_scores=2, scaling=0.5),
    "one expert": RoutingRule(1, True, Scores.SIGMOID),
    "all of the best group": RoutingRule(6, False, Scores.SIGMOID, groups=2, group_scores=3),
    "sixteen": RoutingRule(12, True),
}


def _layer(rule: str, correction: bool, place: Place) -> MoELayer:
    layer = random_layer(12, 64, 32, RULES[rule].top_k, routing=RULES[rule], place=place)
    if not correction:
        return layer
    bias = torch.randn(12, generator=torch.Generator().manual_seed(9)) * 0.3
    return replace(layer, correction_bias=bias.to(place.device))


@pytest.mark.parametrize("correction", [False, True], ids=["", "corrected"])
@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_chooses_and_weighs_as_torch_does(rule: str, correction: bool, place: Place) -> None:
    layer = _layer(rule, correction, place)
    workspace = Workspace(layer, 40)
    x = random_tokens(layer, 40, seed=7)
    expected = reference_moe(x, layer)
    assert relative_error(fused_moe(x, layer, workspace), expected) < place.tolerance
    assert relative_error(baseline_moe(x, layer), expected) < place.tolerance
    routing = choose(x.float() @ layer.router.float().T, layer.routing, layer.correction_bias)
    assert workspace.expert_tokens().tolist() == torch.bincount(routing.experts.flatten(), minlength=12).tolist()


@pytest.mark.parametrize("correction", [False, True], ids=["", "corrected"])
@pytest.mark.parametrize("rule", RULES)
def test_equal_logits_go_to_the_lower_indices(rule: str, correction: bool, place: Place) -> None:
    layer = _layer(rule, False, place)
    layer = replace(
        layer,
        router=torch.zeros_like(layer.router),
        correction_bias=torch.full((12,), 0.25, device=place.device) if correction else None,
    )
    workspace = Workspace(layer, 5)
    fused_moe(random_tokens(layer, 5, seed=0), layer, workspace)
    top_k = layer.routing.top_k
    assert workspace.expert_tokens().tolist() == [5] * top_k + [0] * (12 - top_k)


@pytest.mark.parametrize("rule", RULES)
def test_every_row_has_k_experts_whatever_the_logits(rule: str, place: Place) -> None:
    """NaN counts as the lowest logit and infinity as the largest finite one, in the kernel and in torch."""
    layer = _layer(rule, True, place)
    assert layer.correction_bias is not None
    layer.correction_bias[3] = float("nan")
    layer.correction_bias[8] = float("-inf")
    x = random_tokens(layer, 8, seed=2)
    for row, value in enumerate((float("nan"), float("inf"), float("-inf"), torch.finfo(layer.dtype).max)):
        x[row] = value
    x[4, 5] = float("nan")
    workspace = Workspace(layer, 8)
    others = random_tokens(layer, 8, seed=20)
    others[6:] = x[6:]
    clean = fused_moe(others, layer, workspace)
    before = workspace.expert_tokens().clone()
    y = fused_moe(x, layer, workspace)
    assert_same_row_elsewhere(y[6:], clean[6:], place)
    tokens = workspace.expert_tokens() - before
    assert tokens.sum().item() == 8 * layer.routing.top_k
    assert tokens.max().item() <= 8


def test_nan_logits_choose_the_same_experts_in_the_kernel_and_in_torch(place: Place) -> None:
    layer = _layer("sigmoid groups", False, place)
    workspace = Workspace(layer, 3)
    x = torch.full((3, 64), float("nan"), dtype=place.dtype, device=place.device)
    fused_moe(x, layer, workspace)
    routing = choose(torch.full((3, 12), float("nan")), layer.routing)
    assert workspace.expert_tokens().tolist() == torch.bincount(routing.experts.flatten(), minlength=12).tolist()


def _constant_logits(logits: list[float], rule: RoutingRule, bias: list[float], place: Place) -> MoELayer:
    """A layer whose logits, of a token of ones, are `logits`, multiples of 1/4."""
    layer = random_layer(len(logits), 64, 32, rule.top_k, routing=rule, place=place)
    router = (torch.tensor(logits) / 64)[:, None].expand(-1, 64)
    correction = torch.tensor(bias, dtype=torch.float32, device=place.device)
    return replace(
        layer, router=router.to(device=place.device, dtype=place.dtype).contiguous(), correction_bias=correction
    )


@pytest.mark.parametrize(
    ("low", "weight"),
    [
        # exp(-46) = 1.0530617e-20: ten experts share the sum, and 1e-20 is a good part of the divisor
        (-46.0, 1.0530617e-21 / (2 * 1.0530617e-21 + 1e-20)),
        (-192.0, 0.0),  # exp(-192) is no float32
    ],
)
def test_chosen_scores_that_are_next_to_nothing_stay_so_renormalised(low: float, weight: float, place: Place) -> None:
    layer = _constant_logits([0.0] * 10 + [low] * 2, RoutingRule(2, True), [0.0] * 10 + [9.0] * 2, place)
    workspace = Workspace(layer, 40)
    x = torch.ones(40, 64, dtype=place.dtype, device=place.device)
    found = choose(torch.tensor([[0.0] * 10 + [low] * 2]), layer.routing, torch.tensor([0.0] * 10 + [9.0] * 2))
    assert found.experts.tolist() == [[10, 11]]
    assert found.weights[0].tolist() == pytest.approx([weight] * 2, rel=1e-5)
    y = fused_moe(x, layer, workspace)
    assert workspace.expert_tokens().tolist() == [0] * 10 + [40] * 2
    if weight == 0:
        assert torch.equal(y, torch.zeros_like(y))
    else:
        assert relative_error(y, reference_moe(x, layer)) < place.tolerance


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("rule", "bias"),
    [
        (RoutingRule(3, False), [NAN, 0, 0, 0, NAN, 0, 0, 0, 0, 0, 0, NAN]),
        (RoutingRule(3, True, Scores.SIGMOID), [0, 0, NAN, INFINITY, 0, 0, 0, 0, -INFINITY, 0, 0, 0]),
        (RoutingRule(12, True, Scores.SIGMOID), [0, 0, NAN, INFINITY, 0, 0, 0, 0, -INFINITY, 0, 0, NAN]),
        (RoutingRule(3, False, groups=3, top_groups=2), [NAN, NAN, NAN, NAN, 0, 0, 0, 0, NAN, 0, 0, 0]),
        # the best two of a group with one NaN among them are above those of a group that has nothing else
        (
            RoutingRule(5, False, groups=3, top_groups=2, group_scores=2),
            [NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0, 0, 0, 0, 0],
        ),
    ],
)
def test_a_correction_that_is_not_a_number_is_the_lowest(rule: RoutingRule, bias: list[float], place: Place) -> None:
    layer = random_layer(12, 64, 32, rule.top_k, routing=rule, place=place)
    layer = replace(layer, correction_bias=torch.tensor(bias, dtype=torch.float32, device=place.device))
    workspace = Workspace(layer, 40)
    x = random_tokens(layer, 40, seed=3)
    y = fused_moe(x, layer, workspace)
    routing = choose(x.float() @ layer.router.float().T, rule, layer.correction_bias)
    counted = torch.bincount(routing.experts.flatten(), minlength=12).tolist()
    assert workspace.expert_tokens().tolist() == counted
    if rule.top_k == 3:
        assert all(count == 0 for count, value in zip(counted, bias, strict=True) if value != value)
    assert relative_error(y, reference_moe(x, layer)) < place.tolerance


@pytest.mark.parametrize("shared", [0, 3])
def test_a_layer_with_everything(shared: int, place: Place) -> None:
    rule = RoutingRule(4, True, Scores.SIGMOID, groups=5, top_groups=2, group_scores=2, scaling=1.5)
    layer = with_everything(random_layer(20, 72, 40, 4, routing=rule, shared=shared, place=place))
    workspace = Workspace(layer, 35)
    for tokens in (1, 35):
        x = random_tokens(layer, tokens, seed=tokens)
        expected = reference_moe(x, layer)
        assert relative_error(fused_moe(x, layer, workspace), expected) < place.tolerance
        assert relative_error(baseline_moe(x, layer), expected) < place.tolerance


def test_shared_experts_do_not_change_the_bits_of_other_rows(place: Place) -> None:
    layer = with_everything(random_layer(8, 64, 32, 2, shared=2, place=place))
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=1)
    together = fused_moe(x, layer, workspace, programs=1)
    assert torch.equal(fused_moe(x, layer, workspace, programs=5), together)
    for row in (0, 19):
        other = random_tokens(layer, 20, seed=2 + row)
        other[row] = x[row]
        assert_same_row_elsewhere(together[row], fused_moe(other, layer, workspace, programs=1)[row], place)


def assert_same_row_elsewhere(found: torch.Tensor, expected: torch.Tensor, place: Place) -> None:
    """Bits on a GPU; the interpreter's product is numpy's, which sums rows 0 and 6 of a tile in different orders."""
    if place is INTERPRETER:
        assert relative_error(found, expected) < 1e-6
    else:
        assert torch.equal(found, expected)
