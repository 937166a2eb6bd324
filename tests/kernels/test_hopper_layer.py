"""The Hopper form's kernel for many tokens: its device code on the CPU, a thread for each warp."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens, relative_error, with_everything

from fdmoe_kernels import Fault, MoELayer, Routing, RoutingRule, Scores, Workspace, reference_moe
from fdmoe_kernels.hopper import plan
from fdmoe_watchdog import page as beat_page
from fdmoe_watchdog.page import Exit, ExitWord, Line

BFLOAT16 = Place("cpu", torch.bfloat16, 6e-3, ())


def planned(layer: MoELayer, workspace: Workspace) -> plan.Plan:
    assert workspace.hopper is not None
    made = workspace.hopper.plan(layer, workspace)
    assert made is not None
    return made


def launch(layer: MoELayer, workspace: Workspace, x: torch.Tensor, **more: Any) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    planned(layer, workspace).launch(x, y, **more)
    return y


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("experts", "hidden", "intermediate", "top_k", "tokens"),
    [(4, 128, 64, 2, 20), (1, 8, 8, 1, 3), (7, 200, 72, 3, 150), (3, 72, 136, 2, 400), (130, 64, 16, 4, 64)],
)
@pytest.mark.parametrize("programs", [1, 3])
def test_sizes(experts: int, hidden: int, intermediate: int, top_k: int, tokens: int, programs: int) -> None:
    layer = random_layer(experts, hidden, intermediate, top_k, place=BFLOAT16)
    x = random_tokens(layer, tokens, seed=3)
    y = launch(layer, Workspace(layer, tokens), x, programs=programs)
    assert relative_error(y, reference_moe(x, layer)) < BFLOAT16.tolerance


CUTS: dict[str, dict[str, Any]] = {
    "single": {"paired": False},
    "pairs": {"sort": True, "paired": True},
    "four blocks": {"slots": 4, "column_blocks": 4},
    "gathered": {"sort": False, "paired": False},
    "gathered by pairs": {"sort": False, "paired": True},
    "32 tokens a tile": {"token_tile": 32, "sort": True, "paired": True},
    "16 tokens chosen for": {"route_tokens": 16, "choose_tokens": 16},
    "63 tokens combined": {"combine_tokens": 63},
}


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("programs", [2, 6])
def test_every_cut_gives_the_same_bits(cut: dict[str, Any], programs: int) -> None:
    layer = random_layer(4, 200, 136, 2, place=BFLOAT16)
    tokens = 500
    workspace = Workspace(layer, tokens)
    x = random_tokens(layer, tokens, seed=3)
    own = planned(layer, workspace).tiles(tokens)
    y = launch(layer, workspace, x, programs=1)
    assert relative_error(y, reference_moe(x, layer)) < BFLOAT16.tolerance
    assert torch.equal(launch(layer, workspace, x, programs=programs, tiles=replace(own, **cut)), y)
    assert int(workspace.control.abs().sum()) == 0


RULES = {
    "softmax": RoutingRule(2, True),
    "not renormalised": RoutingRule(3, False),
    "groups": RoutingRule(2, True, Scores.SIGMOID, groups=4, top_groups=2, group_scores=2, scaling=2.5),
}


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("tokens", [5, 300])
def test_it_follows_the_rule_with_all_that_a_layer_can_have(rule: RoutingRule, tokens: int) -> None:
    layer = with_everything(random_layer(8, 64, 24, rule.top_k, place=BFLOAT16, routing=rule, shared=1))
    x = random_tokens(layer, tokens, seed=3)
    x[1, 5] = float("nan")
    y = launch(layer, Workspace(layer, tokens), x, programs=4)
    assert y[1].isnan().all()
    kept = torch.arange(tokens) != 1
    assert relative_error(y[kept], reference_moe(x, layer)[kept]) < BFLOAT16.tolerance


@pytest.mark.usefixtures("emulator")
def test_a_given_routing_and_entries_that_contribute_nothing() -> None:
    layer = random_layer(6, 64, 32, 3, place=BFLOAT16)
    tokens = 200
    experts = torch.randint(0, 6, (tokens, 3), generator=torch.Generator().manual_seed(0))
    experts[::7, 0], experts[::5, 2] = -1, 6
    routing = Routing(experts, torch.rand(tokens, 3, generator=torch.Generator().manual_seed(1)))
    x = random_tokens(layer, tokens, seed=3)
    y = launch(layer, Workspace(layer, tokens), x, routing=routing, programs=3)
    assert relative_error(y, reference_moe(x, layer, routing=routing)) < BFLOAT16.tolerance


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("tokens", [100, 700])
def test_a_stalled_launch_is_aborted_and_the_next_is_right(tokens: int) -> None:
    layer = random_layer(4, 64, 64, 2, place=BFLOAT16)
    words = torch.zeros((beat_page.FIRST_SLOT + 4) * beat_page.LINE_WORDS, dtype=torch.int64)
    workspace = Workspace(layer, tokens, page=words)
    x = random_tokens(layer, tokens, seed=3)
    words[Line.ABORT * beat_page.LINE_WORDS] = 1
    launch(layer, workspace, x, programs=4, fault=Fault.STALL)
    end = words[Line.EXIT * beat_page.LINE_WORDS :][: beat_page.LINE_WORDS]
    assert end[ExitWord.EXIT] == 1 << 8 | Exit.ABORTED
    assert workspace.expert_tokens().sum() == 0
    assert int(workspace.control.abs().sum()) == 0
    words[Line.ABORT * beat_page.LINE_WORDS] = 0
    y = launch(layer, workspace, x, programs=4)
    assert end[ExitWord.EXIT] == 2 << 8 | Exit.DONE
    assert relative_error(y, reference_moe(x, layer)) < BFLOAT16.tolerance
    assert workspace.expert_tokens().sum() == 2 * tokens
    slots = words[beat_page.FIRST_SLOT * beat_page.LINE_WORDS :].view(4, beat_page.LINE_WORDS)
    assert slots[:, 0].tolist() == [2] * 4
    # a pair's second item may be one too many, which its CTA counts as well
    assert slots[:, 7].sum() >= end[2:6].sum() > 0
