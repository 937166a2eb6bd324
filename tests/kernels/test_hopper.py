"""The Hopper form: what can be seen without a GPU, and on one, against the float32 reference."""

from __future__ import annotations

import ctypes
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moe_layers import (
    ARCHITECTURES,
    Place,
    random_layer,
    random_tokens,
    relative_error,
    transformers_block,
    with_everything,
)

from fdmoe_kernels import Fault, Routing, RoutingRule, Scores, Workspace, fused_moe, reference_moe
from fdmoe_kernels import _fused_kernel as portable_kernel
from fdmoe_kernels.hardware import device_name
from fdmoe_kernels.hopper import build, plan, scratch
from fdmoe_kernels.hopper.params import Params, TensorMap
from fdmoe_kernels.hopper.tiles import ROUTE_TOKENS, default_tiles, most_portable_tokens
from fdmoe_watchdog import page as beat_page

HALVES = [
    pytest.param(Place("cuda", torch.bfloat16, 6e-3, ()), id="bfloat16"),
    pytest.param(Place("cuda", torch.float16, 1e-3, ()), id="float16"),
]
CONSTANTS = "".join(build.sources()[name] for name in ("params.cuh", "page.cuh", "token.cuh"))


def _constant(name: str) -> int:
    """An integer constant of these files, or an enumerator."""
    found = re.search(rf"\b{name}\s*=\s*(0x[0-9a-f]+|\d+)", CONSTANTS)
    assert found, name
    return int(found[1], 0)


def test_the_kernel_reads_the_arguments_where_the_host_puts_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = [f"static_assert(sizeof(TensorMap) == {ctypes.sizeof(TensorMap)});"]
    for name, *_ in Params._fields_[:-1]:
        checks.append(
            f"static_assert(__INTADDR__(&static_cast<Params*>(nullptr)->{name}) == {getattr(Params, name).offset});"
        )
    checks.append(f"static_assert(sizeof(Params) <= {ctypes.sizeof(Params)});")
    checks.append(f"static_assert(SHARED_BYTES == {build.SHARED_BYTES});")
    files = build.sources() | {"layer.cu": '#include "params.cuh"\n' + "\n".join(checks)}
    monkeypatch.setattr(build, "sources", lambda: files)
    monkeypatch.setenv("FDMOE_CACHE_DIR", str(tmp_path))
    build.compile_layer(torch.bfloat16)


def test_its_constants_are_those_of_the_page_the_faults_and_the_portable_form() -> None:
    for name in ("TICKET", "ROUTE_DONE", "EXITS", "ABORT", "NEVER"):
        assert _constant(name) == getattr(portable_kernel, name).value, name
    assert _constant("TOTAL_LAUNCHES") == portable_kernel.LAUNCHES.value
    assert _constant("TOTAL_BYTES") == portable_kernel.MOVED.value
    assert _constant("TOTAL_EXPERT_TOKENS") == portable_kernel.ENTERED.value
    assert f"constexpr int ALL_EXPERTS = {beat_page.ALL_EXPERTS};" in CONSTANTS
    for name in ("PAGE_ABORT", "PAGE_EXIT", "PAGE_SLOTS", "SHOWN_AFTER"):
        assert _constant(name) == getattr(portable_kernel, name).value, name
    for phase in beat_page.Phase:
        if phase is not beat_page.Phase.NONE:
            assert _constant(f"PHASE_{phase.name}") == phase
    assert (_constant("WAIT_ROUTE"), _constant("WAIT_UP"), _constant("WAIT_DOWN")) == (1, 2, 3)
    assert (_constant("EXIT_DONE"), _constant("EXIT_ABORTED")) == (beat_page.Exit.DONE, beat_page.Exit.ABORTED)
    for fault in Fault:
        assert fault is Fault.NONE or _constant(f"FAULT_{fault.name}") == fault
    assert _constant("MAX_EXPERTS") == scratch.MAX_EXPERTS
    assert _constant("MAX_ROUTE_TOKENS") == ROUTE_TOKENS
    assert max(build.WIDTHS) == _constant("MAX_TOKEN_TILE")
    for name in (
        "MAX_ENTRIES", "MAX_TOKEN_ROWS", "MAX_KEPT_ROWS", "CHUNK_COLUMNS", "KEPT_ALIGNMENT", "TOKEN_AT",
        "TOKEN_SHARED_BYTES",
    ):  # fmt: skip
        assert _constant(name) == getattr(plan, f"_{name}"), name


@given(
    tokens=st.integers(1, 100_000),
    experts=st.integers(1, 576),
    top_k=st.integers(1, 16),
    hidden=st.integers(1, 2048).map(lambda n: 8 * n),
    multiprocessors=st.integers(1, 200),
)
def test_tiles_by_arithmetic_stay_within_what_the_kernel_can(
    tokens: int, experts: int, top_k: int, hidden: int, multiprocessors: int
) -> None:
    tiles = default_tiles(
        tokens, experts=experts, top_k=top_k, hidden_size=hidden, multiprocessors=multiprocessors
    )  # fmt: skip
    assert tiles.token_tile in build.WIDTHS
    assert 2 <= tiles.slots <= _constant("MAX_SLOTS")
    assert 1 <= tiles.route_tokens <= min(ROUTE_TOKENS, tiles.token_tile)
    assert 1 <= tiles.route_splits <= -(-hidden // 64)
    # the parts fit the room there is for logits (Workspace.logit_rows)
    assert tiles.route_splits == 1 or tiles.route_splits * tokens <= max(tokens, ROUTE_TOKENS * multiprocessors)
    assert 1 <= tiles.column_blocks <= _constant("MAX_BLOCKS")
    assert 1 <= tiles.combine_tokens <= 64


def test_a_width_is_gathered_in_one_pass_or_an_even_number_of_them() -> None:
    assert list(build.WIDTHS) == sorted(set(build.WIDTHS))
    assert build.WIDTHS[0] == 8
    assert all(width % 16 == 0 for width in build.WIDTHS[1:])


def _always(workspace: Workspace) -> Workspace:
    """The workspace, with the Hopper form for any number of tokens."""
    assert workspace.hopper is not None
    workspace.hopper._few = workspace.hopper._more = 0
    return workspace


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("experts", "hidden", "intermediate", "top_k", "tokens"),
    [
        (8, 128, 64, 2, (1, 2, 9, 33, 129, 900)),
        (128, 2048, 768, 8, (1, 16, 100, 1000, 3000)),
        (6, 200, 120, 3, (5, 70, 700)),
        (384, 2880, 416, 4, (1, 300)),
        (3, 64, 64, 1, (700,)),
        (60, 256, 176, 16, (4, 257)),
        (3, 2816, 4352, 1, (1,)),  # rows of one token in registers, whose warps do not take as many steps
    ],
    ids=str,
)
def test_any_size_and_batch(
    experts: int, hidden: int, intermediate: int, top_k: int, tokens: tuple[int, ...], half: Place
) -> None:
    layer = random_layer(experts, hidden, intermediate, top_k, place=half)
    workspace = _always(Workspace(layer, max(tokens)))
    for count in tokens:
        x = random_tokens(layer, count, seed=count)
        out = torch.full_like(x, float("nan"))
        fused_moe(x, layer, workspace, out=out)
        assert relative_error(out, reference_moe(x, layer)) < half.tolerance, count
        assert workspace.control.count_nonzero().item() == 0
        for programs in (1, 17, 132, 200):
            again = fused_moe(x, layer, workspace, programs=programs)
            assert torch.equal(again, out), (count, programs)


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_rule_and_layer_of_transformers(architecture: str, half: Place) -> None:
    block, layer = transformers_block(architecture, half)
    workspace = _always(Workspace(layer, 300))
    for tokens in (1, 7, 64, 300):
        x = random_tokens(layer, tokens, seed=tokens)
        assert relative_error(fused_moe(x, layer, workspace), block(x.float())) < half.tolerance, tokens


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("tokens", [6, 200])
def test_nan_and_infinity_stay_in_their_rows(tokens: int, half: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=half)
    workspace = _always(Workspace(layer, tokens))
    x = random_tokens(layer, tokens, seed=5)
    clean = fused_moe(x, layer, workspace)
    spoiled = x.clone()
    spoiled[1] = float("nan")
    spoiled[4, 7] = float("inf")
    y = fused_moe(spoiled, layer, workspace)
    assert torch.isnan(y[1]).all()
    assert not torch.isfinite(y[4]).all()
    kept = [row for row in range(tokens) if row not in (1, 4)]
    assert torch.equal(y[kept], clean[kept])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_a_given_routing_with_experts_that_do_not_exist(dtype: torch.dtype) -> None:
    layer = random_layer(8, 64, 32, 3, place=Place("cuda", torch.bfloat16, 6e-3, ()))
    tokens = 150
    workspace = _always(Workspace(layer, tokens))
    generator = torch.Generator("cuda").manual_seed(0)
    experts = torch.randint(-2, 10, (tokens, 3), generator=generator, device="cuda").to(dtype)
    routing = Routing(experts, torch.rand(tokens, 3, generator=generator, device="cuda"))
    x = random_tokens(layer, tokens, seed=0)
    y = fused_moe(x, layer, workspace, routing=routing)
    assert relative_error(y, reference_moe(x, layer, routing=routing)) < 6e-3
    valid = (experts >= 0) & (experts < 8)
    # an expert that a token names twice is entered once
    entered = sum(len(set(row[ok].tolist())) for row, ok in zip(experts, valid, strict=True))
    assert workspace.expert_tokens().sum().item() == entered


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("tokens", "programs", "form"),
    [
        (1, 0, "hopper"), (2, 0, "portable"), ("most", 0, "portable"), ("more", 0, "hopper"), (400, 0, "hopper"),
        (16, 3, "portable"), (17, 3, "hopper"),
    ],
)  # fmt: skip
def test_the_faster_form_serves(tokens: int | str, programs: int, form: str) -> None:
    layer = random_layer(8, 128, 64, 2, place=Place("cuda", torch.bfloat16, 6e-3, ()))
    if isinstance(tokens, str):
        most = int(most_portable_tokens(device_name(layer.device)) * 8 / 2)
        tokens = most if tokens == "most" else most + 1
    workspace = Workspace(layer, 400)
    fused_moe(random_tokens(layer, tokens, seed=0), layer, workspace, programs=programs)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        fused_moe(random_tokens(layer, tokens, seed=1), layer, workspace, programs=programs)
        torch.cuda.synchronize()
    assert workspace.form(layer, tokens, programs) == form
    names = [event.name for event in profile.events() if "moe_layer" in event.name]
    ours = "moe_layer_token" if tokens == 1 else "moe_layer"
    assert names == [ours if form == "hopper" else "moe_layer_kernel"]


BFLOAT16 = Place("cuda", torch.bfloat16, 6e-3, ())


@pytest.mark.gpu
@pytest.mark.parametrize("loads", [False, True], ids=["launches", "loads too"])
def test_a_thread_that_has_asked_nothing_of_cuda_yet(loads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = random_layer(8, 128, 64, 2, place=BFLOAT16)
    workspace = _always(Workspace(layer, 40))
    x = random_tokens(layer, 40, seed=0)
    expected = fused_moe(x, layer, workspace)
    torch.cuda.synchronize()
    if loads:
        monkeypatch.setattr(build, "_loaded", {})
        workspace = _always(Workspace(layer, 40))
    out = torch.full_like(x, float("nan"))
    with ThreadPoolExecutor(1) as threads:
        threads.submit(fused_moe, x, layer, workspace, out=out).result(timeout=60)
    torch.cuda.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.gpu
def test_weights_that_went_to_the_cpu_and_back() -> None:
    made = random_layer(8, 128, 64, 2, place=BFLOAT16)
    module = torch.nn.ParameterDict(
        {name: torch.nn.Parameter(tensor, requires_grad=False) for name, tensor in made.tensors.items()}
    )
    layer = replace(made, **dict(module.items()))
    del made
    workspace = _always(Workspace(layer, 40))
    x = random_tokens(layer, 40, seed=0)
    expected = fused_moe(x, layer, workspace)
    before = [tensor.data_ptr() for tensor in layer.tensors.values()]
    torch.cuda.synchronize()
    module.to("cpu")
    # whatever lies where the weights were is wrong now
    spoilt = [torch.full_like(tensor, float("nan"), device="cuda") for tensor in layer.tensors.values()]
    module.to("cuda")
    assert [tensor.data_ptr() for tensor in layer.tensors.values()] != before
    assert torch.equal(fused_moe(x, layer, workspace), expected)
    assert all(torch.isnan(tensor).all() for tensor in spoilt)


@pytest.mark.gpu
def test_other_layers_of_the_workspace_that_the_portable_form_has_to_serve() -> None:
    layer = random_layer(12, 128, 64, 2, place=BFLOAT16)
    room = torch.empty(layer.down.numel() + 1, dtype=layer.dtype, device="cuda")
    unaligned = room[1:].view(layer.down.shape).copy_(layer.down)
    workspace = _always(Workspace(layer, 40))
    x = random_tokens(layer, 40, seed=0)
    for other in (
        layer,
        replace(layer, down=unaligned),
        replace(layer, routing=RoutingRule(2, True, groups=3, top_groups=2, group_scores=3)),
    ):
        assert workspace.form(other, 40) == ("hopper" if other is layer else "portable")
        assert relative_error(fused_moe(x, other, workspace), reference_moe(x, other)) < BFLOAT16.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("given", [False, True], ids=["routed", "given"])
@pytest.mark.parametrize(("experts", "shared"), [(10, 2), (300, 0), (573, 3)])
def test_it_counts_what_the_portable_form_counts(experts: int, shared: int, given: bool) -> None:
    layer = with_everything(random_layer(experts, 128, 64, 4, shared=shared, place=BFLOAT16))
    words = torch.zeros((beat_page.FIRST_SLOT + 132) * beat_page.LINE_WORDS, dtype=torch.int64, device="cuda")
    hopper, portable = _always(Workspace(layer, 200, page=words)), Workspace(layer, 200)
    portable.hopper = None
    for launch, tokens in enumerate((1, 30, 200), start=1):
        x = random_tokens(layer, tokens, seed=tokens)
        routing = None
        if given:
            chosen = torch.arange(tokens * 4, device="cuda").view(tokens, 4) % experts
            routing = Routing(chosen, torch.ones(tokens, 4, device="cuda"))
        for workspace in (hopper, portable):
            fused_moe(x, layer, workspace, routing=routing)
        assert hopper.expert_tokens().tolist() == portable.expert_tokens().tolist()
        assert hopper.bytes_moved().item() == portable.bytes_moved().item()
        line = words[beat_page.Line.EXIT * beat_page.LINE_WORDS :][:6].tolist()
        assert line == [launch, launch << 8 | beat_page.Exit.DONE, *hopper.totals[:4].tolist()]
        assert hopper.totals[_constant("TOTAL_LAUNCHES")].item() == launch
        if tokens == 1:
            before = hopper.totals[:3].clone()
    # columns of up and of down tiles: one each here, but for one token
    _, up, down = (hopper.totals[:3] - before).tolist()
    assert up == down > 0


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("experts", "shared", "hidden", "intermediate", "tokens"),
    [(8, 0, 256, 192, 900), (33, 1, 712, 328, 3000), (5, 0, 64, 64, 801), (3, 2, 200, 120, 1)],
    ids=str,
)
def test_pairs_of_ctas_compute_the_same_bits_as_each_by_itself(
    experts: int, shared: int, hidden: int, intermediate: int, tokens: int, half: Place
) -> None:
    """An odd number of items of all kinds among them: a pair's second item may be one too many."""
    layer = random_layer(experts, hidden, intermediate, 2, shared=shared, place=half)
    workspace = _always(Workspace(layer, tokens))
    plan = workspace.hopper_plan(layer, tokens)
    assert plan is not None
    x = random_tokens(layer, tokens, seed=1)
    room = torch.full((tokens + 200, hidden), 7.0, dtype=x.dtype, device=x.device)
    y = room[:tokens]
    alone = replace(plan.tiles(tokens), paired=False)
    plan.launch(x, y, tiles=alone)
    assert relative_error(y, reference_moe(x, layer)) < half.tolerance
    for tiles in (
        alone,
        replace(alone, sort=True),
        replace(alone, sort=False),
        replace(alone, slots=4, column_blocks=4, combine_tokens=7),
        replace(alone, slots=3, row_group=1, route_splits=1, route_tokens=8, combine_tokens=1),
    ):
        totals = workspace.totals.clone()
        plan.launch(x, y, tiles=tiles)
        expected, counted = y.clone(), workspace.totals - totals
        for programs in (0, 2, 3, 64):
            totals = workspace.totals.clone()
            plan.launch(x, y.fill_(float("nan")), tiles=replace(tiles, paired=True), programs=programs)
            assert torch.equal(y, expected), (tiles, programs)
            assert (room[tokens:] == 7).all(), "it writes nothing beyond"
            assert torch.equal(workspace.totals - totals, counted), (tiles, programs)
            assert workspace.control.count_nonzero().item() == 0


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
def test_more_entries_than_an_item_combines_at_once(half: Place) -> None:
    """16 tokens, each of 132 entries: shared memory has room for 2048 of them."""
    layer = random_layer(4, 64, 64, 2, shared=130, place=half)
    workspace = _always(Workspace(layer, 2500))
    plan = workspace.hopper_plan(layer, 2500)
    assert plan is not None
    assert plan.tiles(2500).combine_tokens * layer.entries_per_token > 2048
    x = random_tokens(layer, 2500, seed=1)
    assert relative_error(fused_moe(x, layer, workspace), reference_moe(x, layer)) < half.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
def test_a_down_item_behind_a_combine_item_leaves_its_entries_alone(half: Place) -> None:
    """Four column blocks, so that down items follow combine items: those have entries in the scratch of both
    warpgroups, and these one step, for which a warpgroup needs no stage of the other's."""
    layer = random_layer(20, 512, 64, 16, shared=20, place=half)
    workspace = _always(Workspace(layer, 700))
    plan = workspace.hopper_plan(layer, 700)
    assert plan is not None
    x = random_tokens(layer, 700, seed=1)
    y = torch.empty_like(x)
    tiles = replace(plan.tiles(700), column_blocks=4, combine_tokens=32, paired=False)
    assert tiles.combine_tokens * layer.entries_per_token > 1024
    for programs in (1, 7, 0):
        for _ in range(10):
            plan.launch(x, y.fill_(float("nan")), tiles=tiles, programs=programs)
            assert relative_error(y, reference_moe(x, layer)) < half.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("experts", [16, 64, 100, 128])
@pytest.mark.parametrize(
    "rule",
    [
        RoutingRule(1, True),
        RoutingRule(3, True),
        RoutingRule(16, False),
        RoutingRule(3, True, Scores.SIGMOID, scaling=2.5),
    ],
    ids=["one", "softmax", "not renormalised", "sigmoid"],
)
def test_a_warp_chooses_the_same_for_two_tokens_at_once_as_for_one(experts: int, rule: RoutingRule) -> None:
    """Items of 32 tokens, the last of 12: four of its warps have a second token, and four have none. Among them tokens
    without a number, as a warp's first and as its second, infinite ones, and such as no expert stands out for."""
    layer = random_layer(experts, 128, 64, rule.top_k, place=BFLOAT16, routing=rule, shared=1)
    workspace = _always(Workspace(layer, 300))
    clean = random_tokens(layer, 300, seed=1)
    odd = clean.clone()
    odd[[0, 41, 296], 3] = float("nan")
    odd[[1, 42], 4] = float("inf")
    odd[[2, 43, 292]] = 0
    for each in (layer, with_everything(layer)):
        plan = workspace.hopper_plan(each, 300)
        assert plan is not None
        tiles = replace(plan.tiles(300), token_tile=32, route_tokens=32)
        for x in (clean, odd):
            results = []
            for choose_tokens in (8, 32):
                y = torch.full_like(x, 7.0)
                workspace.weights.fill_(7.0)
                plan.launch(x, y, tiles=replace(tiles, choose_tokens=choose_tokens))
                results.append((y.nan_to_num(8.0), workspace.weights.nan_to_num(8.0)))
            for one, two in zip(*results, strict=True):
                assert torch.equal(one, two)
            if x is clean:
                assert relative_error(y, reference_moe(x, each)) < BFLOAT16.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize(("top_k", "shared"), [(2, 0), (8, 1), (16, 20)])
@pytest.mark.parametrize("combine_tokens", [63, 64])
def test_many_tokens_of_a_combine_item(combine_tokens: int, top_k: int, shared: int) -> None:
    """An odd number of them, more entries than loads at once, and more than an item has room for at once."""
    layer = random_layer(24, 192, 64, top_k, place=BFLOAT16, shared=shared)
    workspace = _always(Workspace(layer, 700))
    plan = workspace.hopper_plan(layer, 700)
    assert plan is not None
    x = random_tokens(layer, 700, seed=1)
    y = torch.empty_like(x)
    tiles = replace(plan.tiles(700), combine_tokens=combine_tokens)
    for programs in (0, 5):
        plan.launch(x, y.fill_(float("nan")), tiles=tiles, programs=programs)
        assert relative_error(y, reference_moe(x, layer)) < BFLOAT16.tolerance


@pytest.mark.gpu
@pytest.mark.parametrize("half", HALVES)
def test_items_one_after_the_other_in_one_cta_keep_their_results_apart(half: Place) -> None:
    """One CTA works off all items, so that each puts its results where the item before had its own; every width."""
    layer = random_layer(4, 256, 192, 2, place=half)
    workspace = _always(Workspace(layer, 600))
    for tokens in (2, 20, 60, 100, 150, 180, 250, 260, 340, 370, 400, 420, 460, 500, 600):
        x = random_tokens(layer, tokens, seed=tokens)
        expected = fused_moe(x, layer, workspace)
        assert relative_error(expected, reference_moe(x, layer)) < half.tolerance
        for _ in range(20):
            assert torch.equal(fused_moe(x, layer, workspace, programs=1), expected)
