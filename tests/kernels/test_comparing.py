"""What counts as the same result of two paths, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moe_layers import random_layer, random_tokens

from fdmoe_kernels import RoutingRule, Scores, reference_moe
from fdmoe_kernels.comparing import ROW_FACTOR, TOLERANCE, close_calls, compare, difference, tolerance

BF16 = TOLERANCE[torch.bfloat16]
LAYER = random_layer(8, 64, 32, 2)


def results(tokens: int, columns: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 and what bfloat16 makes of it."""
    right = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    return right.bfloat16(), right


def test_rounding_is_no_difference() -> None:
    found, expected = results(4096, 256)
    apart = difference(found, expected)
    assert apart.rows == 4096
    assert 1e-3 < apart.whole < apart.row < 4e-3
    assert apart.within(BF16)


def test_one_wrong_tile_of_a_large_batch_is_found_though_the_whole_is_within_the_tolerance() -> None:
    found, expected = results(4096, 2048)
    found[512:528, 640:704] = torch.randn(16, 64).bfloat16()
    apart = difference(found, expected)
    assert apart.whole < BF16
    assert 0.15 < apart.row < 0.4
    assert not apart.within(BF16)


def test_what_is_wrong_everywhere_by_a_little_is_found_by_the_whole() -> None:
    expected = results(64, 256)[1]
    apart = difference(expected * (1 + 1.5 * BF16), expected)
    assert BF16 < apart.whole < ROW_FACTOR * BF16
    assert apart.row < ROW_FACTOR * BF16
    assert not apart.within(BF16)


def test_a_row_whose_experts_cancel_is_judged_by_the_size_of_the_others() -> None:
    expected = results(64, 256)[1]
    expected[7] *= 1e-4
    found = expected.clone()
    found[7] += 1e-3 * torch.randn(256)
    assert difference(found, expected).within(BF16)
    found[7] += 0.1 * torch.randn(256)
    assert not difference(found, expected).within(BF16)


def test_rows_that_are_not_finite_in_what_is_expected_tell_nothing() -> None:
    found, expected = results(5, 64)
    expected[1, 3], expected[4, 0] = float("nan"), float("inf")
    found[1], found[4] = 7.0, float("nan")
    apart = difference(found, expected)
    assert (apart.rows, apart.within(BF16)) == (3, True)
    expected[:, 0] = float("nan")
    nothing = difference(found, expected)
    assert (nothing.rows, nothing.whole, nothing.row, nothing.within(0.0)) == (0, 0.0, 0.0, True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_where_one_is_expected_is_wrong(value: float) -> None:
    found, expected = results(3000, 64)
    found[2999, 63] = value
    assert not difference(found, expected).within(BF16)
    x = random_tokens(LAYER, 3000, seed=0)
    assert not compare(found, expected, x, LAYER).within(BF16)


def test_a_token_that_could_go_to_two_experts_tells_nothing() -> None:
    """Its rows by one choice and by the other: both are right. The same difference of another token is wrong."""
    x = random_tokens(LAYER, 40, seed=3)
    router = LAYER.router.clone()
    # the second and the third of token 7 are made equal
    second, third = (x[7] @ router.T).topk(3).indices[1:].tolist()
    router[third] += (x[7] @ (router[second] - router[third])) / (x[7] @ x[7]) * x[7]
    one = replace(LAYER, router=router)
    other = replace(LAYER, router=router.clone())
    other.router[third] += 1e-5 * x[7] / x[7].norm()
    one.router[second] += 1e-5 * x[7] / x[7].norm()
    found, expected = reference_moe(x, one), reference_moe(x, other)
    apart = difference(found, expected)
    assert apart.row > 0.05, "the choice differs"
    assert close_calls(x, one).tolist() == [token == 7 for token in range(40)]
    allowed = tolerance(torch.float32)
    judged = compare(found, expected, x, one)
    assert (judged.rows, judged.within(allowed)) == (39, True)
    assert not compare(found, expected, x, one, routed=False).within(allowed)
    expected[8] += 0.01
    assert not compare(found, expected, x, one).within(allowed)
    # alone it proves nothing, by how little or much it differs, but for what is no number
    alone, right = x[7:8], reference_moe(x[7:8], other)
    for share in (1.5, 2.4, 1e3):
        odd = right + share * allowed * right.norm() / 8 * torch.ones(64)
        judged = compare(odd, right, alone, one)
        assert (judged.rows, judged.excused, judged.within(allowed)) == (0, 1, True)
    for value in (float("inf"), float("-inf"), float("nan")):
        odd = right.clone()
        odd[0, 5] = value
        judged = compare(odd, right, alone, one)
        assert (judged.rows, judged.excused, judged.within(allowed)) == (1, 0, False)


@pytest.mark.parametrize(
    "rule",
    [
        RoutingRule(2, renormalize=True),
        RoutingRule(2, renormalize=False, scores=Scores.SIGMOID),
        RoutingRule(2, renormalize=True, groups=4, top_groups=2),
        RoutingRule(2, renormalize=True, scores=Scores.SIGMOID, groups=4, top_groups=2, group_scores=2),
    ],
)
def test_close_calls_are_few_whatever_the_rule(rule: RoutingRule) -> None:
    x = random_tokens(LAYER, 4096, seed=1)
    close = close_calls(x, replace(LAYER, routing=rule))
    assert 0 < int(close.sum()) < 20
    # and the same each time
    assert torch.equal(close, close_calls(x, replace(LAYER, routing=rule)))


def test_a_token_without_a_number_is_no_close_call() -> None:
    x = torch.full((2, 64), float("nan"))
    assert close_calls(x, LAYER).tolist() == [False, False]
