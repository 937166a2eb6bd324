"""What the device counts by itself: tokens of each expert, and bytes moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens, with_everything

from fdmoe_kernels import Fault, Routing, Workspace, fused_moe
from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.routing import choose
from fdmoe_watchdog import page as beat_page

E, S, H, I, K = 10, 2, 64, 32, 3  # noqa: E741


def test_tokens_of_each_expert_add_up_over_launches(place: Place) -> None:
    layer = random_layer(E, H, I, K, shared=S, place=place)
    workspace = Workspace(layer, 21)
    expected = torch.zeros(E + S, dtype=torch.int64)
    for tokens in (21, 1, 8, 21):
        x = random_tokens(layer, tokens, seed=tokens)
        fused_moe(x, layer, workspace)
        experts = choose(x.float() @ layer.router.float().T, layer.routing).experts
        expected[:E] += torch.bincount(experts.flatten().cpu(), minlength=E)
        expected[E:] += tokens
        assert workspace.expert_tokens().tolist() == expected.tolist()
    assert workspace.expert_tokens().dtype == torch.int64
    assert workspace.expert_tokens().device == layer.router.device


@pytest.mark.parametrize("biases", [False, True])
def test_bytes_moved_by_hand(biases: bool, place: Place) -> None:
    layer = random_layer(E, H, I, K, shared=S, place=place)
    if biases:
        layer = with_everything(layer)
    workspace = Workspace(layer, 4)
    size = layer.router.element_size()
    # 4 tokens on experts 2, 5 and 7, one entry invalid: 11 entries of the router's, 8 of the shared experts'
    experts = torch.tensor([[2, 5, 7]] * 4, dtype=torch.int32, device=place.device)
    experts[1, 1] = E
    routing = Routing(experts, torch.ones(4, K, device=place.device))
    fused_moe(random_tokens(layer, 4, seed=0), layer, workspace, routing=routing)
    per_expert = 3 * I * H + (2 * I + H if biases else 0)
    rows = (11 + 8) * (H + 2 * I + 2 * H) + 4 * H
    assert workspace.bytes_moved().item() == size * ((3 + S) * per_expert + rows)
    # a launch that routes by itself reads the router too
    one = random_tokens(layer, 1, seed=1)
    before = workspace.bytes_moved().item()
    fused_moe(one, layer, workspace)
    rows = (K + S) * (H + 2 * I + 2 * H) + H
    assert workspace.bytes_moved().item() - before == size * ((K + S) * per_expert + rows + E * H)


def test_totals_go_beyond_32_bits(place: Place) -> None:
    layer = random_layer(E, H, I, K, place=place)
    workspace = Workspace(layer, 4)
    workspace.totals[kernel.ENTERED.value :] = 2**40
    workspace.totals[kernel.MOVED.value] = 2**50
    fused_moe(random_tokens(layer, 4, seed=0), layer, workspace)
    assert workspace.expert_tokens().sum().item() == E * 2**40 + 4 * K
    assert 2**50 < workspace.bytes_moved().item() < 2**50 + 2**20


def test_an_aborted_launch_adds_nothing(place: Place) -> None:
    layer = random_layer(E, H, I, K, place=place)
    words = torch.zeros((beat_page.FIRST_SLOT + 2) * beat_page.LINE_WORDS, dtype=torch.int64, device=place.device)
    workspace = Workspace(layer, 4, page=words)
    x = random_tokens(layer, 4, seed=0)
    fused_moe(x, layer, workspace)
    tokens, moved = workspace.expert_tokens().clone(), workspace.bytes_moved().clone()
    words[beat_page.Line.ABORT * beat_page.LINE_WORDS] = 2
    fused_moe(x, layer, workspace, fault=Fault.STALL)
    assert words[beat_page.Line.EXIT * beat_page.LINE_WORDS + 1].item() == 2 << 8 | beat_page.Exit.ABORTED
    assert torch.equal(workspace.expert_tokens(), tokens)
    assert torch.equal(workspace.bytes_moved(), moved)
    fused_moe(x, layer, workspace)
    assert torch.equal(workspace.expert_tokens(), 2 * tokens)
    assert torch.equal(workspace.bytes_moved(), 2 * moved)


def test_layers_that_share_a_workspace_need_the_same_shared_experts() -> None:
    layer = random_layer(E, H, I, K, shared=S)
    workspace = Workspace(layer, 4)
    assert workspace.fits(replace(layer, routing=replace(layer.routing, scaling=2.0)))
    other = random_layer(E, H, I, K, shared=1)
    with pytest.raises(ValueError, match=r"the workspace is for \(E, S, H, I, K\) = \(10, 2, 64, 32, 3\)"):
        fused_moe(torch.zeros(1, H), other, workspace)


def test_more_entries_than_32_bits_number_are_refused() -> None:
    layer = random_layer(E, H, I, K, shared=S)
    with pytest.raises(ValueError, match="max_tokens is 429496730, and each token has 5 entries; fewer than 2"):
        Workspace(layer, 2**31 // 5 + 1)
