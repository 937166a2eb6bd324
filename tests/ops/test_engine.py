"""A worker's engine: requests out of the arena, answers into it, on both paths, and through an abort."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_bench import NAME, EngineBench
from moe_layers import random_tokens, relative_error

from fdmoe_kernels import reference_moe
from fdmoe_ops.worker import engine
from fdmoe_ops.worker.engine import BatchError, Fused
from fdmoe_ops.worker.errors import BaselineBroken
from fdmoe_watchdog.messages import Batch, Segment
from fdmoe_watchdog.page import Host, Launch, Line, Wait, parse_slots


def rows_of(result: Fused | None) -> torch.Tensor:
    assert result is not None
    assert result.finite
    return result.y


@pytest.fixture
def bench(in_memory: Path) -> EngineBench:
    return EngineBench(in_memory)


def test_both_paths_answer_each_segment_in_its_own_place(bench: EngineBench) -> None:
    one, two = random_tokens(bench.layer, 3, seed=1), random_tokens(bench.layer, 2, seed=2)
    batch = Batch(1, 1, NAME, (bench.put(one, 4096), bench.put(two, 256)))
    bench.engine.check(batch)
    for path in ("fused", "baseline"):
        x = bench.engine.load(batch)
        assert torch.equal(x, torch.cat([one, two]))
        y = rows_of(bench.engine.run_fused(x, NAME)) if path == "fused" else bench.engine.run_baseline(x, NAME)
        bench.engine.store(y, batch)
        for rows, segment in zip((one, two), batch.segments, strict=True):
            assert relative_error(bench.answer(segment), reference_moe(rows, bench.layer)) < 1e-5
            bench.answer(segment).fill_(float("nan"))
    assert bench.page.read(Line.HOST, Host.FUSED_BATCHES) == 1
    assert bench.page.read(Line.HOST, Host.BASELINE_BATCHES) == 1
    assert not bench.page.snapshot().outstanding
    assert bench.engine.fused_ns > bench.engine.baseline_ns > 0, "the interpreter takes a hundred times as long"


def test_the_host_thread_beats_after_each_wait_for_the_device(bench: EngineBench) -> None:
    batch = Batch(1, 1, NAME, (bench.put(random_tokens(bench.layer, 5, seed=1), 0),))
    beats = [bench.page.read(Line.HOST, Host.BEATS)]
    x = bench.engine.load(batch)
    beats.append(bench.page.read(Line.HOST, Host.BEATS))
    y = rows_of(bench.engine.run_fused(x, NAME))
    beats.append(bench.page.read(Line.HOST, Host.BEATS))
    baseline = bench.engine.run_baseline(x, NAME)
    beats.append(bench.page.read(Line.HOST, Host.BEATS))
    bench.engine.store(y, batch)
    beats.append(bench.page.read(Line.HOST, Host.BEATS))
    bench.engine.compare(x, NAME, y, baseline)
    beats.append(bench.page.read(Line.HOST, Host.BEATS))
    bench.engine.expert_tokens(x, NAME)
    beats.append(bench.page.read(Line.HOST, Host.BEATS))
    assert sorted(set(beats)) == beats, beats
    assert not bench.page.snapshot().host_waits


@pytest.mark.parametrize("call", ["load", "run_fused", "store", "compare", "expert_tokens", "rest"])
def test_the_page_says_that_the_host_thread_is_at_the_device(
    call: str, bench: EngineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sleeps there may be waiting for a neighbour, and has longer."""
    batch = Batch(1, 1, NAME, (bench.put(random_tokens(bench.layer, 5, seed=1), 0),))
    x = bench.engine.load(batch)
    y, baseline = rows_of(bench.engine.run_fused(x, NAME)), bench.engine.run_baseline(x, NAME)
    waits: list[bool] = []

    def watch(module: object, name: str) -> None:
        real = getattr(module, name)

        def called(*arguments: Any, **named: Any) -> Any:
            waits.append(bench.page.snapshot().host_waits)
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, called)

    watch(bench.engine, "_rows")
    watch(bench.engine._tally, "rest")
    for name in ("fused_moe", "compare", "route"):
        watch(engine, name)
    calls: dict[str, Callable[[], object]] = {
        "load": lambda: bench.engine.load(batch),
        "run_fused": lambda: bench.engine.run_fused(x, NAME),
        "store": lambda: bench.engine.store(y, batch),
        "compare": lambda: bench.engine.compare(x, NAME, y, baseline),
        "expert_tokens": lambda: bench.engine.expert_tokens(x, NAME),
        "rest": bench.engine.rest,
    }
    calls[call]()
    assert waits == [True]
    assert not bench.page.snapshot().host_waits


def test_warm_up_proves_the_paths_and_the_abort_and_leaves_nothing_outstanding(bench: EngineBench) -> None:
    assert bench.engine.warm_up(faults=True) < 1e-5
    snapshot = bench.page.snapshot()
    assert snapshot.begun == snapshot.ended > 3
    assert snapshot.abort == 0


def test_an_armed_fault_stalls_one_launch_and_an_abort_gives_it_to_the_baseline(bench: EngineBench) -> None:
    bench.engine.warm_up(faults=True)
    batch = Batch(1, 1, NAME, (bench.put(random_tokens(bench.layer, 5, seed=1), 0),))
    bench.engine.arm("stall", 1)
    begun = bench.page.read(Line.LAUNCH, Launch.BEGUN)

    def abort() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            snapshot = bench.page.snapshot()
            waits = [slot.wait for slot in parse_slots(snapshot.slots) if slot.launch == begun + 1]
            if Wait.UP_TILES in waits:
                bench.page.write(Line.ABORT, 0, begun + 1)
                return

    watcher = threading.Thread(target=abort)
    watcher.start()
    x = bench.engine.load(batch)
    assert bench.engine.run_fused(x, NAME) is None
    watcher.join()
    # the fault was for one launch
    y = rows_of(bench.engine.run_fused(x, NAME))
    assert relative_error(y, reference_moe(x, bench.layer)) < 1e-5


def test_a_comparison_knows_right_from_wrong(bench: EngineBench) -> None:
    batch = Batch(1, 1, NAME, (bench.put(random_tokens(bench.layer, 5, seed=1), 0),))
    x = bench.engine.load(batch)
    y = rows_of(bench.engine.run_fused(x, NAME))
    baseline = bench.engine.run_baseline(x, NAME)
    good = bench.engine.compare(x, NAME, y, baseline)
    assert (good.tokens, good.ok) == (5, True)
    y[3] *= 1.01
    bad = bench.engine.compare(x, NAME, y, baseline)
    assert not bad.ok
    assert bad.relative_error is not None
    assert 1e-4 < bad.relative_error < 1e-2
    assert bad.row_error == pytest.approx(0.01, rel=1e-2)


def test_an_idle_baseline_that_gives_other_numbers_is_broken(bench: EngineBench) -> None:
    bench.engine.warm_up(faults=False)
    begun = bench.page.read(Line.HOST, Host.BASELINE_BEGUN)
    bench.engine.prove_baseline()
    for word in (Host.BASELINE_BEGUN, Host.BASELINE_ENDED):
        assert bench.page.read(Line.HOST, word) == begun + 1
    bench.layer.down[:, 5] += 1.0
    with pytest.raises(BaselineBroken, match=f"the baseline of {NAME} differs by .* from what it gave at the warm-up"):
        bench.engine.prove_baseline()


def test_a_row_that_is_not_finite_is_seen_and_tells_wrong_from_not_computable(bench: EngineBench) -> None:
    rows = random_tokens(bench.layer, 5, seed=1)
    rows[2, 7] = float("nan")
    x = bench.engine.load(Batch(1, 1, NAME, (bench.put(rows, 0),)))
    result = bench.engine.run_fused(x, NAME)
    assert result is not None
    assert not result.finite
    baseline = bench.engine.run_baseline(x, NAME)
    assert bench.engine.compare(x, NAME, result.y, baseline).ok, "the baseline says the same"
    for wrong in (float("nan"), float("inf")):
        result.y[4, 0] = wrong
        assert not bench.engine.compare(x, NAME, result.y, baseline).ok


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch(1, 1, "m/layers.7", (Segment(0, 4096, 1),)), "layer m/layers.7 is not served; these are: m/layers.0"),
        (Batch(1, 1, NAME, ()), "a batch of 0 tokens; 1 to 16 are allowed"),
        (Batch(1, 1, NAME, (Segment(0, 8192, 17),)), "a batch of 17 tokens; 1 to 16 are allowed"),
        (Batch(1, 1, NAME, (Segment(0, 65536 - 255, 1),)), "does not lie in the arena of 65536 bytes"),
        (Batch(1, 1, NAME, (Segment(-4, 0, 1),)), "does not lie in the arena of 65536 bytes"),
        (Batch(1, 1, NAME, (Segment(2, 0, 1),)), "does not lie in the arena of 65536 bytes"),
    ],
)
def test_batches_that_cannot_be_run_are_named(bench: EngineBench, batch: Batch, message: str) -> None:
    with pytest.raises(BatchError, match=message):
        bench.engine.check(batch)
