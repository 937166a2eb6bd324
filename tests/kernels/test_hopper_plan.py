"""Which form serves a layer and how the Hopper form is launched, against a driver that only listens."""

from __future__ import annotations

import gc
import itertools
import re
import threading
import time
import weakref
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from moe_layers import Place, random_layer, random_tokens, relative_error
from played_driver import Listener, play_hopper

from fdmoe_kernels import (
    BuildError,
    Fault,
    MoELayer,
    Routing,
    RoutingRule,
    Workspace,
    fused,
    fused_moe,
    reference_moe,
    warmup,
)
from fdmoe_kernels.hopper import build, driver, plan, scratch
from fdmoe_kernels.hopper.params import TensorMap
from fdmoe_kernels.hopper.tiles import HOPPER, HopperRow
from fdmoe_kernels.tiles import Tiles, tiles_for
from fdmoe_kernels.tuning.tables import pinned
from fdmoe_watchdog import page as beat_page

# float16, which the interpreter computes rightly: so the portable form's answers can be checked
HALF = Place("cpu", torch.float16, 2e-3, ())


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    """CPU layers as if they were on a Hopper device, in this process only."""
    listener = Listener()
    play_hopper(monkeypatch, listener)
    return listener


def _layer(top_k: int = 2, **changes: Any) -> MoELayer:
    return replace(random_layer(8, 64, 32, top_k, place=HALF), **changes)


def _constant(name: str) -> int:
    found = re.search(rf"\b{name}\s*=\s*(\d+)", build.sources()["params.cuh"])
    assert found, name
    return int(found[1])


@pytest.mark.parametrize("tokens", [1, 20, 300])
def test_a_launch_says_how_the_work_is_cut_and_where_its_counters_are(tokens: int, listener: Listener) -> None:
    layer = _layer()
    workspace = Workspace(layer, 300)
    assert workspace.hopper is not None
    made = workspace.hopper.plan(layer, workspace)
    assert made is not None
    x = random_tokens(layer, tokens, seed=0)
    out = torch.empty_like(x)
    made.launch(x, out, programs=3)
    function, threads = 78 if tokens == 1 else 77, _constant("GROUP_THREADS") * 3
    assert listener.launched == [(function, 3, 1, 1, threads, 1, 1, build.SHARED_BYTES, 55, made._address, 0)]
    params, tiles = listener.params[0], made.tiles(tokens)
    assert (params.x, params.y, params.tokens) == (x.data_ptr(), out.data_ptr(), tokens)
    assert (params.page, params.given_experts, params.router_bias) == (0, 0, 0)
    assert params.token_tile == tiles.token_tile >= params.route_tokens
    # one part, for there is one step of 64 to share out
    assert params.route_splits == 1
    route_tiles, row_tiles = -(-tokens // params.route_tokens), tokens * 2 // params.token_tile + 8
    at = _constant("DOWN_DONE") + 32 * _constant("MAX_BLOCKS")
    assert params.counts_at == at
    assert params.route_at == at + 8
    assert params.up_at == at + 8 + route_tiles
    assert params.sorted_at == params.up_at + row_tiles
    assert params.control_words == params.sorted_at + row_tiles <= plan.control_words(layer, 300)


@pytest.mark.parametrize(
    ("tokens", "programs", "grid", "paired"),
    [(1000, 0, 4, True), (1000, 5, 4, True), (1000, 1, 1, False), (100, 3, 3, False)],
)
def test_pairs_of_ctas_are_launched_together_and_a_cta_alone_is_not_one(
    tokens: int, programs: int, grid: int, paired: bool, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = _layer()
    monkeypatch.setattr(plan, "multiprocessors", lambda _: 5)
    fused_moe(random_tokens(layer, tokens, seed=0), layer, Workspace(layer, tokens), programs=programs)
    (launched,), (params,) = listener.launched, listener.params
    assert launched[:10] == (77, grid, 1, 1, _constant("GROUP_THREADS") * 3, 1, 1, build.SHARED_BYTES, 55, launched[9])
    assert bool(params.paired) == paired
    assert listener.clusters == ([2] if paired else [])


def test_l2_fetches_ahead_for_pairs_and_not_where_the_memory_is_the_bottleneck(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tensor_map(*_: object, ahead: bool) -> TensorMap:
        made = TensorMap()
        made.words[0] = 7 + ahead
        return made

    monkeypatch.setattr(plan, "_tensor_map", tensor_map)
    monkeypatch.setattr(plan, "multiprocessors", lambda _: 5)
    layer = _layer()
    workspace = Workspace(layer, 1000)
    for tokens, marks in ((100, {7}), (1000, {8}), (20, {7})):
        fused_moe(random_tokens(layer, tokens, seed=0), layer, workspace)
        params = listener.params[-1]
        assert {weights.words[0] for weights in (params.router, params.gate_up, params.down)} == marks
        assert params.act_8.words[0] == 8


def test_a_launch_has_the_arguments_of_the_first_whatever_was_launched_before(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is filled in is kept for the next launch, if that is cut alike."""
    monkeypatch.setattr(plan, "multiprocessors", lambda _: 5)
    layer = _layer()

    def launch(workspace: Workspace, tokens: int, programs: int, given: bool) -> bytes:
        x = random_tokens(layer, tokens, seed=0)
        routing = Routing(torch.zeros(tokens, 2, dtype=torch.int64), torch.ones(tokens, 2)) if given else None
        fused_moe(x, layer, workspace, routing=routing, programs=programs)
        params = listener.params[-1]
        assert (params.x, bool(params.given_experts)) == (x.data_ptr(), given)
        assert routing is None or params.given_experts == routing.experts.data_ptr()
        params.x = params.y = params.given_experts = params.given_weights = params.given_is_64_bit = 0
        return bytes(params)

    kinds = [(1000, 0, False), (1000, 0, True), (1000, 1, False), (999, 0, False), (1, 0, False), (1, 0, True)]
    memory = Workspace(layer, 1000)
    first = {kind: launch(memory.with_page(None), *kind) for kind in kinds}
    assert len(set(first.values())) == len(kinds)
    again = memory.with_page(None)
    for kind, other in itertools.product(kinds, kinds):
        assert launch(again, *kind) == first[kind]
        assert launch(again, *other) == first[other]


def test_a_page_with_fewer_slots_than_multiprocessors_bounds_the_launch(listener: Listener) -> None:
    layer = _layer()
    words = torch.zeros((beat_page.FIRST_SLOT + 4) * beat_page.LINE_WORDS, dtype=torch.int64)
    for slots, grid in ((None, 4), (1, 1)):
        workspace = Workspace(layer, 20, page=words, slots=slots)
        fused_moe(random_tokens(layer, 20, seed=0), layer, workspace, programs=9)
        assert listener.launched[-1][1] == grid
        assert listener.params[-1].page == words.data_ptr()


@pytest.mark.parametrize(("slots", "allowed"), [(0, "1 to 4"), (5, "1 to 4"), (-1, "1 to 4"), (1.5, "1 to 4")])
def test_slots_that_cannot_be_had_are_named(slots: int, allowed: str) -> None:
    words = torch.zeros((beat_page.FIRST_SLOT + 4) * beat_page.LINE_WORDS, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"^slots is {slots}; {allowed} can be had$"):
        Workspace(_layer(), 4, page=words, slots=slots)
    with pytest.raises(ValueError, match=r"^slots is 1; none without a page can be had$"):
        Workspace(_layer(), 4, slots=1)


def test_with_another_page_the_memory_is_the_same(listener: Listener) -> None:
    layer = _layer()
    words = torch.zeros((beat_page.FIRST_SLOT + 1) * beat_page.LINE_WORDS, dtype=torch.int64)
    served = Workspace(layer, 20, page=words)
    silent = served.with_page(None)
    x = random_tokens(layer, 20, seed=0)
    for workspace, page, grid in ((served, words.data_ptr(), 1), (silent, 0, 2), (served, words.data_ptr(), 1)):
        fused_moe(x, layer, workspace)
        assert (listener.params[-1].page, listener.launched[-1][1]) == (page, grid)
    names = ("control", "act", "sorted", "places")
    pointers = [[getattr(params, name) for name in names] for params in listener.params]
    assert pointers[0] == pointers[1] == pointers[2]
    assert (served.launches, silent.launches) == (2, 1)
    assert (silent.page, silent.slots, silent.size_bytes) == (None, 0, served.size_bytes)
    with pytest.raises(ValueError, match=r"^page is torch\.int64 of 8 words; int64 and at least "):
        served.with_page(words[:8])


@pytest.mark.usefixtures("listener")
def test_the_two_forms_have_their_rows_in_the_same_memory() -> None:
    workspace = Workspace(_layer(), 20)
    hopper = workspace.hopper
    assert hopper is not None
    assert workspace.part.data_ptr() == hopper.sorted.data_ptr()
    assert workspace.act.data_ptr() == hopper.act.data_ptr()
    assert (workspace.part.shape, workspace.act.shape) == ((40, 64), (40, 32))
    assert hopper.size_bytes < workspace.size_bytes < hopper.size_bytes + 20_000


def test_each_thread_is_given_the_context_once_before_it_launches(listener: Listener) -> None:
    layer = _layer()
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=0)

    def launch_twice() -> None:
        for _ in range(2):
            fused_moe(x, layer, workspace)

    launch_twice()
    thread = threading.Thread(target=launch_twice)
    thread.start()
    thread.join(timeout=60)
    once = ["retain 100", "current 200", "launch", "launch"]
    assert listener.names() == once * 2
    mine, its = {ident for _, ident in listener.calls[:4]}, {ident for _, ident in listener.calls[4:]}
    assert mine == {threading.get_ident()} != its


@pytest.mark.usefixtures("listener")
def test_a_context_that_the_driver_refuses_is_a_build_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver as real

    monkeypatch.setattr(real, "cuCtxSetCurrent", lambda *_: (201,))
    for _ in range(2):  # and asked for again
        with pytest.raises(BuildError, match="cuCtxSetCurrent answered 201"):
            driver.make_current(0)


@pytest.mark.usefixtures("listener")
def test_threads_that_share_a_layer_launch_each_their_own_batch() -> None:
    """The driver copies the arguments while it launches; until then no other thread may fill them in."""
    layer = _layer()
    workspace = Workspace(layer, 64)
    assert workspace.hopper is not None
    made = workspace.hopper.plan(layer, workspace)
    assert made is not None
    seen: list[tuple[int, int]] = []
    batches: dict[int, int] = {}
    together = threading.Barrier(2, timeout=60)

    class Slow(Listener):
        def cuLaunchKernel(self, *_: int) -> tuple[int]:
            time.sleep(0)  # lets another thread come in
            seen.append((threading.get_ident(), made._params.x))
            return (0,)

    made.__dict__["_driver"] = Slow()

    def launch_many(x: torch.Tensor) -> None:
        batches[threading.get_ident()] = x.data_ptr()
        out = torch.empty_like(x)
        together.wait()
        for _ in range(300):
            made.launch(x, out)

    xs = [random_tokens(layer, tokens, seed=0) for tokens in (20, 64)]
    threads = [threading.Thread(target=launch_many, args=(x,)) for x in xs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(seen) == 600
    assert [x for ident, x in seen if batches[ident] != x] == []


def test_weights_that_moved_are_found_again(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[int] = []

    def tensor_map(tensor: torch.Tensor, *_: object, **__: object) -> TensorMap:
        mapped.append(tensor.data_ptr())
        return TensorMap()

    monkeypatch.setattr(plan, "_tensor_map", tensor_map)
    parameter = torch.nn.Parameter(_layer().gate_up, requires_grad=False)
    layer = _layer(gate_up=parameter, router_bias=torch.zeros(8, dtype=torch.float16))
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=0)
    fused_moe(x, layer, workspace)
    made = len(mapped)
    fused_moe(x, layer, workspace)
    assert len(mapped) == made
    assert mapped[1] == parameter.data_ptr()
    parameter.data = parameter.data.clone()  # as Module.to does
    fused_moe(x, layer, workspace)
    assert mapped[made + 1] == parameter.data_ptr() != mapped[1]
    assert layer.router_bias is not None
    layer.router_bias.data = layer.router_bias.data.clone()
    fused_moe(x, layer, workspace)
    assert listener.params[-1].router_bias == layer.router_bias.data_ptr() != listener.params[-2].router_bias


@pytest.mark.usefixtures("listener")
def test_a_layer_and_a_workspace_that_nobody_keeps_are_let_go() -> None:
    layer = _layer()
    workspace = Workspace(layer, 20)
    other = _layer()
    for each in (layer, other):
        fused_moe(random_tokens(layer, 20, seed=0), each, workspace)
    assert workspace.hopper is not None
    weights, made = weakref.ref(other.gate_up), weakref.ref(workspace.hopper.plan(other, workspace))
    gone = weakref.ref(workspace)
    gc.disable()  # by reference counts alone: there is no cycle
    try:
        del other, each
        assert (weights(), made()) == (None, None)
        assert workspace.form(layer, 20) == "hopper"
        del workspace
        assert gone() is None
    finally:
        gc.enable()


def _unaligned(tensor: torch.Tensor) -> torch.Tensor:
    room = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
    return room.view(tensor.shape).copy_(tensor)


def test_from_where_on_this_form_serves_is_the_devices_and_the_budgets(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """22 tokens an expert were measured on one device, with two CTAs a multiprocessor; elsewhere 4."""
    layer = _layer()
    words = torch.zeros((beat_page.FIRST_SLOT + 4) * beat_page.LINE_WORDS, dtype=torch.int64)
    assert [Workspace(layer, 100).form(layer, tokens) for tokens in (16, 17)] == ["portable", "hopper"]
    monkeypatch.setattr(scratch, "device_name", lambda _: "NVIDIA H200 NVL")
    monkeypatch.setattr(scratch, "multiprocessors", lambda _: 5)
    workspace, few_slots = Workspace(layer, 100), Workspace(layer, 100, page=words)
    assert [workspace.form(layer, tokens) for tokens in (17, 88, 89)] == ["portable", "portable", "hopper"]
    assert [workspace.form(layer, 17, programs) for programs in (0, 1, 5, 6)] == [
        "portable", "hopper", "hopper", "portable",
    ]  # fmt: skip
    assert few_slots.form(layer, 17) == "hopper"
    fused_moe(random_tokens(layer, 17, seed=0), layer, workspace, programs=5)
    assert len(listener.launched) == 1


OTHERS = {
    "group_scores is 3; 1 or 2 are computed": lambda: _layer(routing=RoutingRule(2, True, groups=2, group_scores=3)),
    "down is at address 0x": lambda: _layer(down=_unaligned(_layer().down)),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_another_layer_that_the_hopper_form_does_not_compute_is_served_by_the_portable_one(
    reason: str, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    layer, other = _layer(), OTHERS[reason]()
    for first in (layer, other):  # whichever the workspace was made for
        workspace = Workspace(first, 20)
        assert workspace.fits(other)
        assert [workspace.form(layer, tokens) for tokens in (16, 17)] == ["portable", "hopper"]
        assert workspace.form(other, 17) == "portable"
        x = random_tokens(layer, 20, seed=0)
        y = fused_moe(x, other, workspace)
        assert relative_error(y, reference_moe(x, other)) < HALF.tolerance
        fused_moe(x, layer, workspace)
    assert listener.names().count("launch") == 2
    assert len(caplog.records) == 2  # once a workspace
    assert caplog.records[0].getMessage().startswith(
        f"the portable form serves instead of the Hopper form: {reason}"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "experts", "reason"),
    [
        (RoutingRule(2, True, groups=34), 68, "groups is 34; at most 32 are computed"),
        (RoutingRule(2, True, groups=2), 306, "306 experts are in groups; at most 304 are computed"),
        (RoutingRule(2, True, groups=2), 304, None),
        (RoutingRule(2, True), 306, None),
        (RoutingRule(2, True, groups=32), 64, None),
    ],
)
def test_rules_and_the_numbers_that_they_are_computed_for(rule: RoutingRule, experts: int, reason: str | None) -> None:
    assert scratch.obstacle(random_layer(experts, 8, 8, 2, routing=rule, place=HALF)) == reason


def _refused(*_: object) -> int:
    raise BuildError("NVRTC is not there")


def test_where_it_cannot_be_built_the_portable_form_serves_and_says_why_once(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plan, "load_layer", _refused)
    layer, other = _layer(), random_layer(8, 64, 32, 2, seed=1, place=HALF)
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=0)
    for each in (layer, other, layer):
        assert relative_error(fused_moe(x, each, workspace), reference_moe(x, each)) < HALF.tolerance
        assert workspace.form(each, 20) == "portable"
    assert listener.calls == []
    assert [record.getMessage() for record in caplog.records] == [
        "the portable form serves instead of the Hopper form: NVRTC is not there"
    ]


def test_a_tensor_map_that_the_driver_refuses_is_a_build_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver as real

    monkeypatch.setattr(real, "cuTensorMapEncodeTiled", lambda *_: (1, None))
    with pytest.raises(BuildError, match=r"a tensor map of sizes \(64, 8\), strides \(128,\) and box .* answered 1"):
        plan._tensor_map(_layer().router, (64, 8), (128,), (64, 128), ahead=True)


@pytest.mark.usefixtures("listener")
def test_what_is_not_built_is_no_surprise_in_a_capture_and_no_row_of_a_tuning_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "load_layer", _refused)
    layer = _layer()
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=0)
    monkeypatch.setattr(scratch, "capturing", lambda *_: True)
    with pytest.raises(BuildError, match="NVRTC is not there"):
        fused_moe(x, layer, workspace)
    monkeypatch.setattr(scratch, "capturing", lambda *_: False)
    with pinned(HOPPER, HopperRow()), pytest.raises(BuildError, match="NVRTC is not there"):
        fused_moe(x, layer, workspace)
    assert workspace.launches == 0
    fused_moe(x, layer, workspace)
    # what was settled before a capture holds in it
    monkeypatch.setattr(scratch, "capturing", lambda *_: True)
    assert relative_error(fused_moe(x, layer, workspace), reference_moe(x, layer)) < HALF.tolerance


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("most", [1, 2, 20, 500])
def test_a_warm_up_runs_every_row_that_the_portable_form_serves_beside_this_one(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One token has this form, and so have many: what is between is not served by the first count of its row."""
    layer = _layer()
    workspace = Workspace(layer, most)
    ran: list[int] = []
    monkeypatch.setattr(warmup, "_prove", lambda x, *_, **__: ran.append(x.shape[0]) or 0.0)
    warmup.warm_up(layer, workspace)

    def served(counts: Iterable[int]) -> set[Tiles | str]:
        forms = {tokens: workspace.form(layer, tokens) for tokens in counts}
        return {form if form == "hopper" else tiles_for(layer, tokens) for tokens, form in forms.items()}

    assert served(ran) == served(range(1, most + 1))


def test_a_fault_is_of_the_form_that_serves_or_a_build_error(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: int, __: torch.dtype, fault: Fault) -> build.Kernels:
        if fault is Fault.SLOW:
            raise BuildError("no such build")
        return build.Kernels(70 + fault, 80 + fault)

    monkeypatch.setattr(plan, "load_layer", load)
    layer = _layer()
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, 20, seed=0)
    fused_moe(x, layer, workspace, fault=Fault.STALL)
    fused_moe(x, layer, workspace)
    assert [arguments[0] for arguments in listener.launched] == [70 + Fault.STALL, 70]
    with pytest.raises(BuildError, match="no such build"):
        fused_moe(x, layer, workspace, fault=Fault.SLOW)
    assert workspace.launches == 2


@pytest.mark.usefixtures("listener")
@pytest.mark.parametrize("tokens", [3, 20], ids=["portable", "hopper"])
def test_a_captured_launch_is_not_counted(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _layer()
    workspace = Workspace(layer, 20)
    x = random_tokens(layer, tokens, seed=0)
    fused_moe(x, layer, workspace)
    monkeypatch.setattr(fused, "capturing", lambda *_: True)
    fused_moe(x, layer, workspace)
    assert workspace.launches == 1
    monkeypatch.setattr(fused, "capturing", lambda *_: False)
    fused_moe(x, layer, workspace)
    assert workspace.launches == 2
