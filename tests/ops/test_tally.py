"""What a worker's count page says of its batches: by layer, by path, by bucket, and nothing of the warm-up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from moe_layers import INTERPRETER, random_layer, random_tokens

from fdmoe_kernels import MoELayer
from fdmoe_kernels.baseline import route
from fdmoe_ops.worker.engine import Engine
from fdmoe_watchdog.counts import TOKEN_BUCKETS, CountFile, Counts, counts_path
from fdmoe_watchdog.page import Line, Page

NAMES = ("m/layers.0", "m/layers.1")
E = 8


class Bench:
    """Two layers of one shape, with a shared expert, in one engine; read as the watchdog reads it."""

    def __init__(self, directory: Path) -> None:
        self.layers = [random_layer(E, 64, 32, 2, shared=1, place=INTERPRETER, seed=seed) for seed in (1, 2)]
        (directory / "arena").write_bytes(bytes(4096))
        self.page = Page.create(directory / "page", generation=1, slots=2)
        self.engine = Engine(
            dict(zip(NAMES, self.layers, strict=True)), page=self.page, arena=directory / "arena",
            max_batch_tokens=16, programs=0,
        )  # fmt: skip
        self.engine.warm_up(faults=False)
        self.warm_bytes = self.moved()
        self.reader = CountFile(counts_path(self.page.path), layers=2, experts=E)

    def run(self, layer: int, tokens: int, seed: int) -> torch.Tensor:
        """One fused batch that is answered; the tokens that each routed expert gets."""
        x = random_tokens(self.layers[layer], tokens, seed=seed)
        assert self.engine.run_fused(x, NAMES[layer]) is not None
        self.engine.settle()
        return _expected(x, self.layers[layer])

    def moved(self) -> int:
        return int(self.engine._workspace.bytes_moved())

    def counts(self) -> Counts:
        return self.reader.read()

    def tokens(self, layer: int) -> list[int]:
        return list(self.counts().tokens[layer * E : (layer + 1) * E])


@pytest.fixture
def bench(in_memory: Path) -> Bench:
    return Bench(in_memory)


def test_the_warm_up_is_not_counted(bench: Bench) -> None:
    counts = bench.counts()
    assert (counts.bytes_moved, set(counts.tokens), counts.number) == (0, {0}, 0)
    bench.engine.rest()
    assert set(bench.counts().tokens) == {0}


def test_each_layer_gets_what_its_launches_computed(bench: Bench) -> None:
    first = bench.run(0, 5, seed=3) + bench.run(0, 4, seed=4)
    second = bench.run(1, 7, seed=5)
    assert bench.tokens(0) == first.tolist(), "read when the layer changed"
    assert bench.tokens(1) == [0] * E
    first += bench.run(0, 1, seed=6)
    assert bench.tokens(1) == second.tolist()
    bench.engine.rest()
    assert bench.tokens(0) == first.tolist()
    assert bench.counts().bytes_moved == bench.moved() - bench.warm_bytes > 0


def test_a_layer_that_is_alone_is_read_twice_a_second(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    counted = bench.run(0, 3, seed=1)
    bench.engine.rest()
    later = bench.run(0, 3, seed=2)
    now += 499_999_999
    later += bench.run(0, 3, seed=3)
    assert bench.tokens(0) == counted.tolist()
    now += 1
    bench.run(0, 3, seed=4)
    assert bench.tokens(0) == (counted + later).tolist()


def test_times_are_of_each_path_and_bucket(bench: Bench) -> None:
    bench.run(0, 5, seed=1)
    bench.run(1, 8, seed=1)
    bench.engine.run_baseline(random_tokens(bench.layers[0], 1, seed=1), NAMES[0])
    counts = bench.counts()
    found = {
        (path, bucket): sum(counts.launches(path, bucket)[0])
        for path in ("fused", "baseline")
        for bucket in TOKEN_BUCKETS
        if sum(counts.launches(path, bucket)[0])  # type: ignore[arg-type]
    }
    assert found == {("fused", 8): 2, ("baseline", 1): 1}
    assert 0 < counts.launches("baseline", 1)[1] < 60


def test_what_was_read_before_an_aborted_launch_is_counted_all_the_same(bench: Bench) -> None:
    first = bench.run(0, 5, seed=1)
    # the layer changes, so that the first one's tokens are read; nobody answers this launch
    bench.engine.arm("stall", 1)
    bench.page.write(Line.ABORT, 0, bench.engine.launches + 1)
    assert bench.engine.run_fused(random_tokens(bench.layers[1], 3, seed=1), NAMES[1]) is None
    bench.engine.rest()
    assert bench.tokens(0) == first.tolist()
    assert bench.tokens(1) == [0] * E


def test_an_aborted_launch_is_no_launch_of_the_layer(bench: Bench) -> None:
    bench.engine.arm("stall", 1)
    launch = bench.engine.launches + 1
    bench.page.write(Line.ABORT, 0, launch)
    assert bench.engine.run_fused(random_tokens(bench.layers[0], 3, seed=1), NAMES[0]) is None
    bench.engine.rest()
    counts = bench.counts()
    assert (set(counts.tokens), counts.number, counts.bytes_moved) == ({0}, 0, 0)
    later = bench.run(0, 3, seed=2)
    bench.engine.rest()
    assert bench.tokens(0) == later.tolist()


def _expected(x: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    return torch.bincount(route(x, layer).experts.flatten(), minlength=E)[:E]
