"""The one-launch kernel against transformers' blocks and the float32 reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from moe_layers import ARCHITECTURES, Place, random_layer, random_tokens, relative_error, transformers_block

from fdmoe_kernels import (
    Fault,
    FusedMoE,
    MoELayer,
    RoutingRule,
    Workspace,
    baseline_moe,
    fused_moe,
    reference_moe,
    warm_up,
    warmup,
)
from fdmoe_kernels.hardware import multiprocessors
from fdmoe_kernels.tiles import tiles_for
from fdmoe_watchdog import page as beat_page


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fused_baseline_and_reference_agree_with_transformers(architecture: str, any_place: Place) -> None:
    place = any_place
    block, layer = transformers_block(architecture, place)
    workspace = Workspace(layer, max(place.token_counts))
    for tokens in place.token_counts:
        x = random_tokens(layer, tokens, seed=tokens)
        out = torch.full_like(x, float("nan"))
        assert fused_moe(x, layer, workspace, out=out) is out
        expected = block(x.float()) if tokens else x.float()
        assert relative_error(reference_moe(x, layer), expected) < 1e-5, tokens
        assert relative_error(out, expected) < place.tolerance, tokens
        assert relative_error(baseline_moe(x, layer), expected) < place.tolerance * _spread(tokens), tokens


def _spread(tokens: int) -> float:
    """torch rounds after each step of the baseline, and 64 values say little: of 300 single tokens in bfloat16 one in
    forty is off by more than a batch may be, and none by 1.4 times as much."""
    return 1.0 if tokens > 16 else 1.5


def test_all_tokens_on_one_expert_and_experts_that_get_nothing(place: Place) -> None:
    tokens = 70
    layer = random_layer(8, 64, 32, 1, place=place)
    x = random_tokens(layer, tokens, seed=0).abs()
    router = torch.zeros_like(layer.router)
    router[5] = 1.0
    layer = MoELayer(router, layer.gate_up, layer.down, layer.routing)
    workspace = Workspace(layer, tokens)
    expected = reference_moe(x, layer)
    assert relative_error(fused_moe(x, layer, workspace), expected) < place.tolerance
    assert relative_error(baseline_moe(x, layer), expected) < place.tolerance


@pytest.mark.parametrize(
    ("experts", "hidden", "intermediate", "top_k"),
    [
        (3, 40, 24, 3), (5, 72, 56, 2), (40, 32, 16, 6),
        # the Hopper form chooses up to 16
        (9, 24, 16, 7), (9, 24, 16, 9), (18, 24, 16, 13), (15, 24, 16, 14), (18, 24, 16, 15), (18, 24, 16, 17),
    ],
    ids=str,
)  # fmt: skip
def test_sizes_that_are_no_power_of_two(place: Place, experts: int, hidden: int, intermediate: int, top_k: int) -> None:
    layer = random_layer(experts, hidden, intermediate, top_k, renormalize=False, place=place)
    workspace = Workspace(layer, 33)
    for tokens in (1, 33):
        x = random_tokens(layer, tokens, seed=tokens)
        assert relative_error(fused_moe(x, layer, workspace), reference_moe(x, layer)) < place.tolerance


def test_the_same_input_gives_the_same_bits_with_any_number_of_ctas(place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    tokens = 19
    workspace = Workspace(layer, tokens)
    x = random_tokens(layer, tokens, seed=3)
    first: dict[str, torch.Tensor] = {}
    repetitions = 50 if place.device == "cuda" else 3
    for repetition in range(repetitions):
        programs = 1 + 7 * repetition
        out = torch.full_like(x, float("nan"))
        fused_moe(x, layer, workspace, out=out, programs=programs)
        assert torch.equal(out, first.setdefault(workspace.form(layer, tokens, programs), out))
    whole = fused_moe(x, layer, workspace)
    assert torch.equal(whole, first[workspace.form(layer, tokens)])
    for out in first.values():
        assert relative_error(out, reference_moe(x, layer)) < place.tolerance


def test_a_row_has_the_same_bits_whatever_else_is_in_the_batch(place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, 12)
    x = random_tokens(layer, 12, seed=4)
    together = fused_moe(x, layer, workspace)
    for row in (0, 5, 11):
        other = random_tokens(layer, 12, seed=40 + row)
        other[row] = x[row]
        assert torch.equal(fused_moe(other, layer, workspace)[row], together[row])


def test_nan_and_infinity_stay_in_their_rows(place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, 6)
    x = random_tokens(layer, 6, seed=5)
    clean = fused_moe(x, layer, workspace)
    spoiled = x.clone()
    spoiled[1] = float("nan")
    spoiled[4, 7] = float("inf")
    y = fused_moe(spoiled, layer, workspace)
    assert torch.isnan(y[1]).all()
    assert not torch.isfinite(y[4]).all()
    for row in (0, 2, 3, 5):
        assert torch.equal(y[row], clean[row])


def test_control_words_are_zero_again_and_the_page_tells_what_was_done(place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    words = torch.zeros((beat_page.FIRST_SLOT + 4) * beat_page.LINE_WORDS, dtype=torch.int64, device=place.device)
    workspace = Workspace(layer, 20, page=words)
    for _ in range(2):
        fused_moe(random_tokens(layer, 20, seed=6), layer, workspace, programs=3)
    assert workspace.totals[4].item() == 2 == workspace.launches
    assert workspace.control.count_nonzero().item() == 0
    lines = words.cpu().view(-1, beat_page.LINE_WORDS)
    ended, exit_word, route, up, down, combine = lines[beat_page.Line.EXIT, :6].tolist()
    assert (ended, exit_word) == (2, 2 << 8 | beat_page.Exit.DONE)
    slots = beat_page.parse_slots(lines[beat_page.FIRST_SLOT :].contiguous().numpy().tobytes())
    assert [slot.phase for slot in slots] == [beat_page.Phase.LEFT] * 3 + [beat_page.Phase.NONE]
    assert {slot.launch for slot in slots[:3]} == {2}
    # two launches alike: the slots of the last hold half of all items
    assert 2 * sum(slot.items for slot in slots) == route + up + down + combine
    tiles = tiles_for(layer, 20)
    route_tiles = -(-20 // tiles.route_tokens)
    free = multiprocessors(layer.device) * tiles.programs // route_tiles
    parts = min(-(-64 // tiles.route_depth), tiles.route_splits, free)
    portable = 2 * route_tiles * parts, 2 * -(-20 // tiles.combine_tokens)
    # the logits of tiles of 16 tokens, the choice for tiles of 8, and combine items of two tokens in the Hopper form
    assert (route, combine) == {"hopper": (2 * (2 + 3), 2 * 10), "portable": portable}[workspace.form(layer, 20)]


def test_launch_numbers_go_beyond_32_bits(place: Place) -> None:
    layer = random_layer(4, 32, 16, 2, place=place)
    words = torch.zeros((beat_page.FIRST_SLOT + 2) * beat_page.LINE_WORDS, dtype=torch.int64, device=place.device)
    workspace = Workspace(layer, 2, page=words)
    workspace.totals[4] = 2**31 - 1
    fused_moe(random_tokens(layer, 2, seed=0), layer, workspace, programs=2)
    lines = words.cpu().view(-1, beat_page.LINE_WORDS)
    assert lines[beat_page.Line.EXIT, :2].tolist() == [2**31, 2**31 << 8 | beat_page.Exit.DONE]
    assert lines[beat_page.FIRST_SLOT, beat_page.SlotWord.LAUNCH].item() == 2**31


def test_warm_up_runs_every_row_of_the_table(place: Place) -> None:
    layer = random_layer(4, 32, 16, 2, place=place)
    workspace = Workspace(layer, 500)
    assert warm_up(layer, workspace) < place.tolerance * 2
    assert workspace.launches >= 2


def test_a_layer_like_one_that_is_warm_is_proven_and_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [random_layer(4, 32, 16, 2, renormalize=index != 1, seed=index) for index in range(4)]
    workspace = Workspace(layers[0], 200)
    ran: dict[MoELayer, list[int]] = {layer: [] for layer in layers}

    def prove(x: torch.Tensor, layer: MoELayer, *_: object, **__: object) -> float:
        ran[layer].append(x.shape[0])
        return layers.index(layer) / 10

    monkeypatch.setattr(warmup, "_prove", prove)
    monkeypatch.setattr(warmup, "token_counts_of_all_rows", lambda *_: [1, 7, 200])
    assert warmup.warm_up_all(layers, workspace) == 0.3
    assert list(ran.values()) == [[1, 7, 200], [1, 7, 200], [1, 200], [1, 200]]


@pytest.mark.gpu
def test_no_compile_after_warm_up_whatever_the_token_count() -> None:
    from fdmoe_kernels._fused_kernel import moe_layer_kernel

    place = Place("cuda", torch.bfloat16, 6e-3, ())
    layer = random_layer(16, 128, 64, 4, place=place)
    workspace = Workspace(layer, 512)
    warm_up(layer, workspace)

    def variants() -> int:
        return sum(len(cache[0]) for cache in moe_layer_kernel.device_caches.values())

    before = variants()
    for tokens in (1, 2, 3, 15, 16, 17, 64, 100, 128, 333, 512):
        fused_moe(random_tokens(layer, tokens, seed=tokens), layer, workspace)
    assert variants() == before


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 1000])
def test_one_launch_and_nothing_else(tokens: int) -> None:
    place = Place("cuda", torch.bfloat16, 6e-3, ())
    layer = random_layer(16, 128, 64, 4, place=place)
    workspace = Workspace(layer, 1000)
    x = random_tokens(layer, tokens, seed=0)
    out = torch.empty_like(x)
    fused_moe(x, layer, workspace, out=out)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        fused_moe(x, layer, workspace, out=out)
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.profiler.DeviceType.CUDA]
    hopper = "moe_layer_token" if tokens == 1 else "moe_layer"
    assert on_device == [{"hopper": hopper, "portable": "moe_layer_kernel"}[workspace.form(layer, tokens)]]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [5, 100], ids=["portable", "hopper"])
def test_a_captured_graph_gives_the_same_bits_and_counts_what_runs(tokens: int) -> None:
    place = Place("cuda", torch.bfloat16, 6e-3, ())
    layer = random_layer(16, 128, 64, 4, place=place)
    workspace = Workspace(layer, 100)
    x = random_tokens(layer, tokens, seed=1)
    expected = fused_moe(x, layer, workspace)
    out = torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fused_moe(x, layer, workspace, out=out)
    assert workspace.launches == 1  # nothing of a capture runs
    for replays in range(1, 6):
        out.fill_(float("nan"))
        graph.replay()
        assert torch.equal(out, expected)
        assert workspace.totals[4].item() == 1 + replays


def test_the_kernels_constants_are_those_of_the_page_and_of_the_faults() -> None:
    from fdmoe_kernels import _fused_kernel as kernel

    words = {"PAGE_ABORT": beat_page.Line.ABORT, "PAGE_EXIT": beat_page.Line.EXIT, "PAGE_SLOTS": beat_page.FIRST_SLOT}
    for name, line in words.items():
        assert getattr(kernel, name).value == line * beat_page.LINE_WORDS, name
    phases = {f"PHASE_{phase.name}": phase for phase in beat_page.Phase if phase is not beat_page.Phase.NONE}
    waits = {
        "WAIT_NONE": beat_page.Wait.NONE,
        "WAIT_ROUTE": beat_page.Wait.ROUTE_TILES,
        "WAIT_UP": beat_page.Wait.UP_TILES,
        "WAIT_DOWN": beat_page.Wait.DOWN_TILES,
    }
    exits = {f"EXIT_{code.name}": code for code in beat_page.Exit if code is not beat_page.Exit.NONE}
    faults = {f"FAULT_{fault.name}": fault for fault in Fault}
    for name, number in {**phases, **waits, **exits, **faults}.items():
        assert getattr(kernel, name).value == number, name


LAYER = random_layer(4, 32, 16, 2)
WORKSPACE = Workspace(LAYER, 8)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 31), r"x has shape \(3, 31\); \[T, 32\] is needed"),
        (torch.zeros(3, 2, 32), r"x has shape \(3, 2, 32\)"),
        (torch.zeros(3, 32, dtype=torch.float64), r"x is torch.float64 on cpu; the weights are torch.float32 on cpu"),
        (torch.zeros(32, 3).T, r"x has strides \(1, 3\)"),
        (torch.zeros(9, 32), r"x has 9 tokens; the workspace is for at most 8"),
        (torch.zeros(3 * 32 + 1)[1:].view(3, 32), r"16-byte alignment is needed"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fused_moe(x, LAYER, WORKSPACE)


def test_other_arguments_that_do_not_fit_are_named() -> None:
    x = torch.zeros(2, 32)
    message = (
        r"^the workspace is for \(E, S, H, I, K\) = \(4, 0, 32, 16, 2\), torch\.float32 on cpu; "
        r"the layer has \(5, 1, 48, 16, 3\), torch\.float32 on cpu$"
    )
    with pytest.raises(ValueError, match=message):
        fused_moe(torch.zeros(2, 48), random_layer(5, 48, 16, 3, shared=1), WORKSPACE)
    for tokens in (0, 2.5):
        with pytest.raises(ValueError, match=rf"^max_tokens is {tokens}; an int, at least 1, is needed$"):
            Workspace(LAYER, tokens)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"page is torch\.int32 of 512 words"):
        Workspace(LAYER, 8, page=torch.zeros(512, dtype=torch.int32))
    words = torch.zeros(1024, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"page is on meta; cpu or pinned memory of the host is needed"):
        Workspace(LAYER, 8, page=words.to("meta"))
    with pytest.raises(ValueError, match=r"page has strides \(2,\) and begins at address 0x"):
        Workspace(LAYER, 8, page=words[::2])
    with pytest.raises(ValueError, match=r"page has strides \(1,\) and begins at address 0x.*8; contiguous"):
        Workspace(LAYER, 8, page=words[1:])
    with pytest.raises(ValueError, match=r"x is torch\.float32 on meta"):
        fused_moe(x.to("meta"), LAYER, WORKSPACE)
    with pytest.raises(ValueError, match=r"gate_up has shape \(4, 32, 31\)"):
        MoELayer(LAYER.router, torch.zeros(4, 32, 31), LAYER.down, LAYER.routing)
    with pytest.raises(ValueError, match="top_k is 5; the layer has 4 experts"):
        MoELayer(LAYER.router, LAYER.gate_up, LAYER.down, RoutingRule(5, renormalize=True))


@pytest.mark.parametrize("programs", [-1, 65537, 2**31, 1.5])
def test_numbers_of_ctas_that_cannot_be_had_are_named(programs: int) -> None:
    message = rf"^programs is {programs}; an int from 1 to 65536 CTAs, or 0 for all, is allowed$"
    with pytest.raises(ValueError, match=message):
        fused_moe(torch.zeros(2, 32), LAYER, WORKSPACE, programs=programs)
    with pytest.raises(ValueError, match=message):
        FusedMoE(LAYER, WORKSPACE, programs=programs)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(3, 32), r"out is torch\.float32 \(3, 32\) on cpu; like x, torch\.float32 \(2, 32\) on cpu, is"),
        (torch.zeros(32), r"out is torch\.float32 \(32,\) on cpu; like x"),
        (torch.zeros(2, 32).double(), r"out is torch\.float64 \(2, 32\) on cpu; like x"),
        (torch.zeros(2, 32, device="meta"), r"out is torch\.float32 \(2, 32\) on meta; like x"),
        (torch.zeros(32, 2).T, r"out has strides \(1, 2\); a contiguous \[T, 32\] is needed"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit_are_named(out: torch.Tensor, message: str) -> None:
    x = torch.zeros(2, 32)
    with pytest.raises(ValueError, match=message):
        fused_moe(x, LAYER, WORKSPACE, out=out)
    with pytest.raises(ValueError, match=message):
        baseline_moe(x, LAYER, out=out)


def test_the_interpreters_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fdmoe_kernels.portable.interpreted", lambda: True)
    layer = random_layer(4, 32, 16, 2, place=Place("cpu", torch.bfloat16, 6e-3, ()))
    x = random_tokens(layer, 3, seed=0)
    workspace = Workspace(layer, 3)
    message = r"^the layer is torch\.bfloat16, .*; torch\.float32 or torch\.float16 is allowed there$"
    with pytest.raises(ValueError, match=message):
        fused_moe(x, layer, workspace)
    assert workspace.launches == 0
    assert relative_error(baseline_moe(x, layer), reference_moe(x, layer)) < 1.5 * 6e-3


NEEDED = "the layer is on cpu; a GPU, or TRITON_INTERPRET=1 before the first import of triton, is needed"


def test_a_layer_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fdmoe_kernels.portable.interpreted", lambda: False)
    with pytest.raises(ValueError, match=f"^{NEEDED}$"):
        fused_moe(torch.zeros(2, 32), LAYER, WORKSPACE)


LATE = """
import os
import torch, triton
if {first}:
    os.environ["TRITON_INTERPRET"] = "1"
from fdmoe_kernels import MoELayer, RoutingRule, Workspace, fused_moe
os.environ["TRITON_INTERPRET"] = "1"
layer = MoELayer(torch.zeros(4, 32), torch.zeros(4, 32, 32), torch.zeros(4, 32, 16), RoutingRule(2, True))
try:
    fused_moe(torch.zeros(2, 32), layer, Workspace(layer, 2))
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("first", [True, False], ids=["before the kernels", "after the kernels"])
def test_the_interpreter_is_not_had_once_triton_is_imported(first: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-P", "-c", LATE.format(first=first)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (result.stdout, result.returncode) == (f"{NEEDED}\n", 0), result.stderr[-4000:]
