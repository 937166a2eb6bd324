"""Measuring a model's cells: weights, scratch memory, compiled code and batches are made once and serve all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from fdmoe_kernels.baseline import baseline_moe
from fdmoe_kernels.bench.models import DTYPES, MODELS, random_tokens
from fdmoe_kernels.bench.peers import Mode, best_peer, chosen_experts
from fdmoe_kernels.bench.rows import Key, Row
from fdmoe_kernels.bench.work import Work, touched_experts, work_of
from fdmoe_kernels.fused import fused_moe
from fdmoe_kernels.hardware import device_name, grouped_mm_supported, power_w, software_versions
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.reference import reference_moe
from fdmoe_kernels.tiles import Precision
from fdmoe_kernels.timing import Run, Timer
from fdmoe_kernels.warmup import warm_up
from fdmoe_kernels.workspace import Workspace
from fdmoe_watchdog import page as beat_page

MODES: tuple[Mode, ...] = ("eager", "graph")
# the float32 reference of more rows takes seconds and gigabytes; these are drawn at random from the batch
COMPARED_TOKENS = 512
# one in 30 has as many experts as the peers' batch of 16 tokens of Qwen3, one in 200 as that of OLMoE
_DRAWS = 2000
# the beats cost less than the noise of a few runs
_PAIR_RUNS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """How a cell is measured: at most `runs` recorded runs of a variant, about `budget_s` seconds of them a cell."""

    timer: Timer
    device: torch.device
    runs: int
    budget_s: float
    commit: str
    command: str


@dataclass(frozen=True, slots=True)
class _Variants:
    """The calls of one batch, and where they write their results, with and without beats to the same place; but for
    `eager`, which allocates it as a user's call does."""

    eager: Callable[[], torch.Tensor]
    fused: Run
    no_beats: Run
    baseline: Run
    y: torch.Tensor
    y_baseline: torch.Tensor


def measure_model(
    name: str, dtype: str, token_counts: list[int], modes: tuple[Mode, ...], plan: Plan, *, done: set[Key]
) -> Iterator[Row]:
    """The rows of one model and dtype that `done` does not have, as they are measured."""
    missing = [tokens for tokens in token_counts if any((name, tokens, dtype, mode) not in done for mode in modes)]
    if not missing:
        return
    numbers = DTYPES[dtype]
    layer = MODELS[name].random_layer(numbers.dtype, plan.device)
    with_beats = Workspace(layer, max(missing), page=new_page(plan.device))
    without = with_beats.with_page(None)
    for workspace in (with_beats, without):
        warm_up(layer, workspace, precision=numbers.precision)
    for tokens in missing:
        x = choose_batch(name, tokens, layer)
        wanted = tuple(mode for mode in modes if (name, tokens, dtype, mode) not in done)
        variants = _variants(x, layer, with_beats, without, numbers.precision)
        yield from _measure_batch(name, dtype, x, layer, variants, wanted, plan)


def choose_batch(name: str, tokens: int, layer: MoELayer) -> torch.Tensor:
    """Random tokens that choose as many experts as the peers' did; if none are found, any, whose floor says so."""
    wanted = chosen_experts(name, tokens)
    draws = (random_tokens(layer, tokens) for _ in range(_DRAWS))
    for x in draws:
        if wanted is None or touched_experts(layer, x) == wanted:
            break
    return x


def new_page(device: torch.device) -> torch.Tensor:
    """A beat page that no watchdog reads: beats and abort checks then cost what they do in service."""
    page = torch.zeros((beat_page.FIRST_SLOT + beat_page.GPU_SLOTS) * beat_page.LINE_WORDS, dtype=torch.int64)
    return page.pin_memory() if device.type == "cuda" else page


def _variants(
    x: torch.Tensor, layer: MoELayer, with_beats: Workspace, without: Workspace, precision: Precision
) -> _Variants:
    y, y_baseline = (torch.full_like(x, float("nan")) for _ in range(2))
    return _Variants(
        lambda: fused_moe(x, layer, with_beats, precision=precision),
        lambda: fused_moe(x, layer, with_beats, out=y, precision=precision),
        lambda: fused_moe(x, layer, without, out=y, precision=precision),
        lambda: baseline_moe(x, layer, out=y_baseline),
        y,
        y_baseline,
    )


def _measure_batch(
    name: str, dtype: str, x: torch.Tensor, layer: MoELayer, variants: _Variants, modes: tuple[Mode, ...], plan: Plan
) -> Iterator[Row]:
    """One row a mode. The baseline has no time in a graph where it is a loop that reads counts on the host."""
    tokens = x.shape[0]
    work = work_of(layer, x, DTYPES[dtype])
    operations = {"fused": plan.timer.operations(variants.fused), "baseline": plan.timer.operations(variants.baseline)}
    compared = torch.randperm(tokens, device=x.device)[:COMPARED_TOKENS]
    reference = reference_moe(x[compared], layer)
    for mode in modes:
        runs = {"fused": variants.fused, "no_beats": variants.no_beats, "baseline": variants.baseline}
        if mode == "graph":
            if not grouped_mm_supported(layer.device, layer.dtype):
                del runs["baseline"]
            runs = {variant: plan.timer.captured(run) for variant, run in runs.items()}
        pair = {variant: runs[variant] for variant in ("fused", "no_beats")}
        beside = {variant: run for variant, run in runs.items() if variant != "no_beats"}
        if mode == "eager":
            beside["fused"] = variants.eager
        half_s = plan.budget_s / 2
        times = plan.timer.latency_us(beside, runs=plan.runs, budget_s=half_s)
        if mode == "eager":
            variants.fused()
            assert torch.equal(variants.eager(), variants.y), "a result of its own differs"
        pair_times = plan.timer.latency_us(pair, runs=plan.runs * _PAIR_RUNS, budget_s=half_s)
        watts = power_w(plan.device)
        results = [_result(run, variants.y) for run in pair.values()]
        assert torch.equal(*results), "beats change the result"
        yield _row(
            (name, tokens, dtype, mode),
            work,
            times,
            pair_times,
            watts,
            operations,
            {
                "fused": _error(variants.y[compared], reference),
                "baseline": _error(variants.y_baseline[compared], reference),
            },
            plan,
        )


def _row(
    key: tuple[str, int, str, Mode],
    work: Work,
    times: dict[str, float],
    pair_times: dict[str, float],
    watts: float | None,
    operations: dict[str, int],
    errors: dict[str, float],
    plan: Plan,
) -> Row:
    name, tokens, dtype, mode = key
    latency = times["fused"]
    baseline = times.get("baseline")
    peer, peer_us = best_peer(name, tokens, dtype, mode) or (None, None)
    return Row(
        model=name,
        tokens=tokens,
        dtype=dtype,
        mode=mode,
        latency_us=round(latency, 1),
        baseline_us=None if baseline is None else round(baseline, 1),
        best_peer_us=peer_us,
        floor_us=round(work.floor_us, 1),
        operations=operations["fused"],
        relative_error=errors["fused"],
        best_peer=peer,
        best_peer_ratio=None if peer_us is None else round(peer_us / latency, 3),
        no_beats_us=round(pair_times["no_beats"], 1),
        beats_share=round(pair_times["fused"] / pair_times["no_beats"] - 1, 4),
        power_w=None if watts is None else round(watts),
        speedup=None if baseline is None else round(baseline / latency, 3),
        floor_share=round(work.floor_us / latency, 3),
        tflops=round(work.tflops(latency), 1),
        weight_gbps=round(work.weight_gbps(latency), 1),
        baseline_operations=operations["baseline"],
        baseline_relative_error=errors["baseline"],
        device=device_name(plan.device),
        versions=software_versions(),
        commit=plan.commit,
        command=plan.command,
    )


def _result(run: Run, y: torch.Tensor) -> torch.Tensor:
    """What a call writes to y."""
    y.fill_(float("nan"))
    run()
    return y.clone()


def _error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float(f"{((y.float() - reference).norm() / reference.norm()).item():.2e}")
