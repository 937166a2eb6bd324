"""The Hopper form's kernel for one token: its device code on the CPU, a thread for each warp."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from emulated_kernels import Emulator
from moe_layers import Place, random_layer, random_tokens, relative_error, with_everything

from fdmoe_kernels import Fault, MoELayer, Routing, RoutingRule, Scores, Workspace, fused_moe, reference_moe
from fdmoe_kernels._fused_kernel import SHOWN_AFTER as PORTABLE_SHOWN_AFTER
from fdmoe_kernels.hopper import plan
from fdmoe_watchdog import page as beat_page
from fdmoe_watchdog.page import Exit, ExitWord, Line, Wait

BFLOAT16 = Place("cpu", torch.bfloat16, 6e-3, ())
SHOWN_AFTER = PORTABLE_SHOWN_AFTER.value  # test_hopper.py compares both


def launch(layer: MoELayer, workspace: Workspace, **more: object) -> torch.Tensor:
    return fused_moe(random_tokens(layer, 1, seed=3), layer, workspace, **more)  # type: ignore[arg-type]


def expected(layer: MoELayer, routing: Routing | None = None) -> torch.Tensor:
    return reference_moe(random_tokens(layer, 1, seed=3), layer, routing=routing)


RULES = {
    "softmax": RoutingRule(2, True),
    "not renormalised": RoutingRule(3, False),
    "sigmoid": RoutingRule(2, True, Scores.SIGMOID, scaling=2.5),
    "groups": RoutingRule(2, True, Scores.SIGMOID, groups=4, top_groups=2, group_scores=2),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_it_follows_the_rule_with_all_that_a_layer_can_have(rule: RoutingRule, emulator: Emulator) -> None:
    layer = with_everything(random_layer(8, 64, 24, rule.top_k, place=BFLOAT16, routing=rule, shared=1))
    workspace = Workspace(layer, 1)
    assert workspace.form(layer, 1) == "hopper"
    assert relative_error(launch(layer, workspace), expected(layer)) < BFLOAT16.tolerance
    assert [arguments[0] for arguments in emulator.launched] == [78]


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(
    ("experts", "hidden", "intermediate", "top_k"),
    [
        (1, 8, 8, 1),
        (13, 520, 8, 1),
        (40, 16, 264, 3),
        (200, 72, 40, 8),
        (6, 2176, 16, 2),
        (4, 24, 2312, 2),
        (3, 1024, 256, 2),
        (2, 16, 3328, 2),
    ],
)
def test_sizes(experts: int, hidden: int, intermediate: int, top_k: int) -> None:
    layer = random_layer(experts, hidden, intermediate, top_k, place=BFLOAT16)
    assert relative_error(launch(layer, Workspace(layer, 1)), expected(layer)) < BFLOAT16.tolerance


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize(("kept", "intermediate"), [(0, 72), (1, 72), (9, 256), (16, 72)])
def test_rows_come_into_shared_memory_or_into_registers(
    kept: int, intermediate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_MAX_KEPT_ROWS", kept)
    layer = random_layer(7, 104, intermediate, 2, place=BFLOAT16, shared=1)
    cut = plan.token_cut(layer)
    assert cut is not None
    assert cut.kept == kept
    workspace = Workspace(layer, 1)
    results = [launch(layer, workspace, programs=grid) for grid in (1, 3)]
    assert relative_error(results[0], expected(layer)) < BFLOAT16.tolerance
    assert all(torch.equal(result, results[0]) for result in results), "of one item, of several, and the last in part"
    routing = Routing(torch.tensor([[-1, 2]]).int(), torch.tensor([[0.5, 0.25]]))
    spared = launch(layer, workspace, routing=routing)
    assert relative_error(spared, expected(layer, routing=routing)) < BFLOAT16.tolerance


@pytest.mark.usefixtures("emulator")
def test_warps_that_share_rows_in_registers_need_not_take_as_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    # 17 parts of a row for two warps: nine and eight, where a step is of eight
    monkeypatch.setattr(plan, "multiprocessors", lambda _: 4)
    layer = random_layer(20, 88, 256, 16, place=BFLOAT16, shared=1)
    assert plan.token_cut(layer) == (3, 2, 22, 16)
    answer = launch(layer, Workspace(layer, 1), programs=1)
    assert relative_error(answer, expected(layer)) < BFLOAT16.tolerance


@pytest.mark.usefixtures("emulator")
def test_what_is_not_a_number_stays_one_and_chooses_experts_all_the_same() -> None:
    layer = random_layer(8, 64, 24, 2, place=BFLOAT16)
    workspace = Workspace(layer, 1)
    x = random_tokens(layer, 1, seed=3)
    x[0, 5] = float("nan")
    assert torch.isnan(fused_moe(x, layer, workspace)).all()
    # an expert whose logit is not a number counts as the lowest: it is not chosen, and the answer is the others'
    router = layer.router.clone()
    router[3, 7] = float("nan")
    spoilt = replace(layer, router=router)
    kept = [expert for expert in range(8) if expert != 3]
    fewer = MoELayer(layer.router[kept], layer.gate_up[kept], layer.down[kept], layer.routing)
    clean = random_tokens(layer, 1, seed=3)
    answer = fused_moe(clean, spoilt, workspace)
    assert relative_error(answer, reference_moe(clean, fewer)) < BFLOAT16.tolerance
    assert workspace.expert_tokens()[3] <= 1, "the first token's, whose logits were all no numbers"


@pytest.mark.usefixtures("emulator")
def test_any_number_of_ctas_gives_the_same_bits_and_every_launch_starts_anew() -> None:
    layer = random_layer(8, 64, 48, 2, place=BFLOAT16)
    workspace = Workspace(layer, 1)
    results = [launch(layer, workspace, programs=grid) for grid in (1, 2, 5, 1)]
    assert all(torch.equal(result, results[0]) for result in results)
    assert int(workspace.control.abs().sum()) == 0
    assert workspace.expert_tokens().sum() == 4 * 2
    entry, expert = 3 * 64 + 2 * 48, 3 * 64 * 48
    assert workspace.bytes_moved() == 4 * 2 * (8 * 64 + 2 * expert + 2 * entry + 64)


@pytest.mark.usefixtures("emulator")
def test_a_given_routing_and_entries_that_contribute_nothing() -> None:
    layer = random_layer(6, 64, 32, 3, place=BFLOAT16)
    routing = Routing(torch.tensor([[4, 99, 1]]).int(), torch.tensor([[0.5, 0.25, 0.0]]))
    workspace = Workspace(layer, 1)
    assert (
        relative_error(launch(layer, workspace, routing=routing), expected(layer, routing=routing)) < BFLOAT16.tolerance
    )
    assert workspace.expert_tokens().tolist() == [0, 0, 0, 0, 1, 0]


def page_of(slots: int) -> torch.Tensor:
    return torch.zeros((beat_page.FIRST_SLOT + slots) * beat_page.LINE_WORDS, dtype=torch.int64)


@pytest.mark.usefixtures("emulator")
def test_it_beats_counts_and_says_how_it_ended() -> None:
    layer = random_layer(8, 64, 32, 2, place=BFLOAT16)
    words = page_of(3)
    workspace = Workspace(layer, 1, page=words)
    launch(layer, workspace, programs=3)
    end = words[Line.EXIT * beat_page.LINE_WORDS :][: beat_page.LINE_WORDS].tolist()
    assert end[ExitWord.EXIT] == 1 << 8 | Exit.DONE
    # four columns a warp, and 16 rows of H an item
    route, up, down = 1, 2 * 1, 64 // 16
    assert end[2:6] == [route, up, down, 0]
    slots = words[beat_page.FIRST_SLOT * beat_page.LINE_WORDS :].view(3, beat_page.LINE_WORDS)
    assert slots[:, 0].tolist() == [1, 1, 1]
    assert slots[:, 7].sum() == route + up + down, "each item was somebody's"


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.NONE], ids=["up", "routing"])
def test_a_launch_that_does_not_end_is_aborted_and_the_next_is_right(fault: Fault, emulator: Emulator) -> None:
    layer = random_layer(13, 64, 32, 2, place=BFLOAT16)
    words = page_of(3)
    workspace = Workspace(layer, 1, page=words)
    words[Line.ABORT * beat_page.LINE_WORDS] = 1
    if fault is Fault.NONE:
        emulator.hold_logits(1 << 30)
    launch(layer, workspace, programs=3, fault=fault)
    assert words[Line.EXIT * beat_page.LINE_WORDS + ExitWord.EXIT] == 1 << 8 | Exit.ABORTED
    assert workspace.expert_tokens().sum() == 0
    assert not workspace.control.any(), "logits that came too late are no next launch's"
    words[Line.ABORT * beat_page.LINE_WORDS] = 0
    assert relative_error(launch(layer, workspace), expected(layer)) < BFLOAT16.tolerance


@pytest.mark.parametrize("experts", [1, 12, 13, 64, 128, 576])
def test_a_line_says_how_many_route_items_are_missing(experts: int, emulator: Emulator) -> None:
    items = [len(range(first, min(first + 12, experts))) for first in range(0, experts, 12)]
    assert emulator.route_items_seen(experts, experts) == len(items)
    assert emulator.route_items_seen(experts, 0) == 0
    for logits in items:
        assert emulator.route_items_seen(experts, experts - logits) == len(items) - 1
    assert emulator.route_items_seen(experts, experts - 1) == len(items) - 1, "one logit is missing"


def test_a_wait_is_shown_once_it_lasts_and_taken_back_when_it_is_over(emulator: Emulator) -> None:
    # a route item is twelve experts: two of them
    layer = random_layer(13, 64, 32, 2, place=BFLOAT16)
    words = page_of(3)
    workspace = Workspace(layer, 1, page=words)
    words[Line.ABORT * beat_page.LINE_WORDS] = 1
    emulator.lines(Fault.STALL)
    launch(layer, workspace, programs=2, fault=Fault.STALL)
    waits = [line.looks for line in emulator.lines(Fault.STALL) if line.wait]
    assert waits, "the one that is stalled waits for good"
    assert min(waits) == SHOWN_AFTER, "at this look, and not before"
    # whoever has none of the routing waits for it, and that wait ends well
    slots = words[beat_page.FIRST_SLOT * beat_page.LINE_WORDS :].view(3, beat_page.LINE_WORDS)
    emulator.lines(Fault.NONE)
    emulator.hold_logits(2 * SHOWN_AFTER)
    launch(layer, workspace, programs=3)
    lines = emulator.lines(Fault.NONE)
    assert all(line.looks >= SHOWN_AFTER for line in lines if line.wait)
    (target,) = {line.target for line in lines if line.wait == Wait.ROUTE_TILES}
    assert target == 2, "items, as the totals count them"
    by_cta = [[line.wait for line in lines if line.cta == cta] for cta in range(3)]
    shown = sum(wait > 0 and not before for waits in by_cta for before, wait in pairwise([0, *waits]))
    others = sum(not line.wait for line in lines)
    assert others == slots[:, 7].sum() + 3 + shown, "a line for each item, for each CTA that left, and for each wait"


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("fault", [Fault.NAN, Fault.WRONG])
def test_a_spoilt_tile_is_spoilt_once(fault: Fault) -> None:
    layer = random_layer(8, 64, 32, 2, place=BFLOAT16)
    workspace = Workspace(layer, 1)
    spoilt = launch(layer, workspace, fault=fault)
    assert torch.isnan(spoilt).any() == (fault is Fault.NAN)
    assert not relative_error(spoilt, expected(layer)) < 0.1
    assert relative_error(launch(layer, workspace), expected(layer)) < BFLOAT16.tolerance


def _shaped(experts: int, top_k: int, hidden: int, intermediate: int) -> MoELayer:
    """A layer of this shape that has no memory."""

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device="meta")

    return replace(
        random_layer(experts, 8, 8, top_k, place=BFLOAT16),
        router=empty(experts, hidden),
        gate_up=empty(experts, 2 * intermediate, hidden),
        down=empty(experts, hidden, intermediate),
    )


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        # Qwen3-30B-A3B: one round of up items, 97 % of the CTAs; OLMoE: two rounds, 88 %. Both: one of down items, with
        # room in shared memory for all of its rows, or for 12 of 16
        ((128, 8, 2048, 768), (4, 1, 16, 16)),
        ((64, 8, 2048, 1024), (3, 3, 16, 12)),
        # no room for any row beside the activations
        ((4, 1, 64, 100_000), (4, 12, 1, 0)),
        # Mixtral-8x7B: so many bytes that the other form is faster
        ((8, 2, 4096, 14336), None),
        # more activations than shared memory has room for
        ((4, 1, 64, 110_000), None),
    ],
    ids=str,
)
def test_how_the_work_is_cut(
    shape: tuple[int, int, int, int], cut: tuple[int, int, int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "multiprocessors", lambda _: 132)
    assert plan.token_cut(_shaped(*shape)) == cut
