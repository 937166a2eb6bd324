"""The Hopper form: what can be seen without a GPU, and on one, against the float32 reference."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from moe_layers import ARCHITECTURES, Place, random_layer, random_tokens, relative_error, transformers_block

from fdmoe_kernels import Fault, Routing, Workspace, fused_moe, reference_moe
from fdmoe_kernels import _fused_kernel as portable_kernel
from fdmoe_kernels.hopper import build, plan, scratch
from fdmoe_kernels.hopper.params import Params, TensorMap
from fdmoe_kernels.hopper.tiles import ROUTE_TOKENS, default_tiles
from fdmoe_watchdog import page as beat_page

HALVES = [
    pytest.param(Place("cuda", torch.bfloat16, 6e-3, ()), id="bfloat16"),
    pytest.param(Place("cuda", torch.float16, 1e-3, ()), id="float16"),
]
PARAMS = build.sources()["params.cuh"]


def _constant(name: str) -> int:
    """An integer constant of params.cuh, or an enumerator."""
    found = re.search(rf"\b{name}\s*=\s*(0x[0-9a-f]+|\d+)", PARAMS)
    assert found, name
    return int(found[1], 0)


def _disassembled(cubin: bytes, tmp_path: Path) -> list[str]:
    import triton

    path = tmp_path / "layer.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", text)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_run_on_tensor_cores_without_a_spill(dtype: torch.dtype, tmp_path: Path) -> None:
    lines = _disassembled(build.compile_layer(dtype), tmp_path)
    products = [(i, m[1]) for i, line in enumerate(lines) if (m := re.search(r"HGMMA\.64x(\d+)x16\.F32", line))]
    # a loop of four products for each width and no other copy of it
    assert sorted(int(width) for _, width in products) == sorted(width for width in build.WIDTHS for _ in range(4))
    for first in range(0, len(products), 4):
        loop = lines[products[first][0] : products[first + 3][0]]
        assert not [line for line in loop if re.search(r"\b(LDL|STL)\b", line)]


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
    for name in ("PAGE_ABORT", "PAGE_EXIT", "PAGE_SLOTS"):
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


def test_a_build_is_kept_on_disk_and_a_disk_that_refuses_costs_only_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "sources", lambda: {"layer.cu": 'extern "C" __global__ void moe_layer() {}'})
    monkeypatch.setenv("FDMOE_CACHE_DIR", str(tmp_path / "cache"))
    first = build.compile_layer(torch.bfloat16)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.read_bytes() == first
    kept.write_bytes(b"what the disk holds")
    assert build.compile_layer(torch.bfloat16) == b"what the disk holds"
    assert build.compile_layer(torch.float16) == first  # another build, another file
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FDMOE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert build.compile_layer(torch.bfloat16) == first


def test_what_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "sources", lambda: {"layer.cu": "no such thing;"})
    monkeypatch.setenv("FDMOE_CACHE_DIR", str(tmp_path))
    with pytest.raises(build.BuildError, match="no such thing"):
        build.compile_layer(torch.bfloat16)


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
    # the parts fit the room there is for logits (HopperScratch.logit_rows)
    assert tiles.route_splits == 1 or tiles.route_splits * tokens <= max(tokens, ROUTE_TOKENS * multiprocessors)
    assert 1 <= tiles.column_blocks <= _constant("MAX_BLOCKS")
    assert tiles.combine_tokens >= 1


@pytest.mark.parametrize("tokens", [1, 20, 300])
def test_a_launch_says_how_the_work_is_cut_and_where_its_counters_are(
    tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = random_layer(8, 64, 32, 2, place=Place("cpu", torch.bfloat16, 0, ()))
    workspace = Workspace(layer, 300)
    launched: list[tuple[int, ...]] = []

    class Driver:
        def cuLaunchKernel(self, *arguments: int) -> tuple[int]:
            launched.append(arguments)
            return (0,)

    monkeypatch.setattr(plan, "_tensor_map", lambda *_: TensorMap())
    monkeypatch.setattr(plan, "load_layer", lambda *_: 77)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=55))
    made = plan.Plan(layer, workspace, scratch.HopperScratch(layer, workspace))
    monkeypatch.setitem(made.__dict__, "_driver", Driver())
    x = random_tokens(layer, tokens, seed=0)
    out = torch.empty_like(x)
    made.launch(x, out, programs=3)
    assert launched == [(77, 3, 1, 1, _constant("GROUP_THREADS") * 3, 1, 1, build.SHARED_BYTES, 55, made._address, 0)]
    params, tiles = made._params, made.tiles(tokens)
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


def test_no_layer_on_the_cpu_is_for_it() -> None:
    assert not scratch.takes(random_layer(4, 32, 16, 2))
    assert Workspace(random_layer(4, 32, 16, 2), 4).hopper is None


def _always(workspace: Workspace) -> Workspace:
    """The workspace, with the Hopper form for any number of tokens."""
    assert workspace.hopper is not None
    workspace.hopper._fewest_tokens = 0
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
@pytest.mark.parametrize(("tokens", "form"), [(1, "portable"), (16, "portable"), (17, "hopper"), (400, "hopper")])
def test_the_faster_form_serves(tokens: int, form: str) -> None:
    layer = random_layer(8, 128, 64, 2, place=Place("cuda", torch.bfloat16, 6e-3, ()))
    workspace = Workspace(layer, 400)
    fused_moe(random_tokens(layer, tokens, seed=0), layer, workspace)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        fused_moe(random_tokens(layer, tokens, seed=1), layer, workspace)
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if "moe_layer" in event.name]
    assert names == ["moe_layer" if form == "hopper" else "moe_layer_kernel"]
