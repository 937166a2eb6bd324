"""`python benchmarks/beats.py`: what beats cost a batch on its way through a worker.

Three engines over one layer take turns with the same batches, out of the arena, through the fused path, and back into
the arena: one as a worker has it, whose kernel and host thread write into the pinned page and look at it for an abort,
one whose host thread alone does, and one without a page. All have the same memory on the device, for where it lies
makes a difference of its own. Who is first changes from turn to turn; the times are medians.
`cost` is of all beats and `host_cost` the host thread's part of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rows import describe_machine, reproduce, write_rows

from fdmoe_kernels import MoELayer
from fdmoe_kernels.bench.models import MODELS
from fdmoe_ops.worker.engine import Engine
from fdmoe_ops.worker.tally import Tally
from fdmoe_watchdog.messages import Batch, Segment
from fdmoe_watchdog.page import GPU_SLOTS, Exit, Page

_NAME = "m/layers.0"
_WARM = 20
_SEGMENT_TOKENS = 64


class _NoPage:
    """Takes what the engine would write."""

    def write(self, *_: object, **__: object) -> None: ...

    add = begin_launch = begin_wait = end_wait = write

    def exit_of(self, _: int) -> Exit:
        return Exit.DONE


class _Silent(Engine):
    """An engine whose launches have no page; what it computed is counted all the same."""

    def forget_page(self, served: Engine, *, host: bool) -> None:
        """The kernel does, and the host thread, too, if not `host`; what is on the device is that of `served`."""
        self._workspace = served._workspace.with_page(None)
        self._x, self._fused_y, self._peak = served._x, served._fused_y, served._peak
        if host:
            self._page.exit_of = _NoPage().exit_of  # type: ignore[method-assign]
        else:
            self._page = _NoPage()  # type: ignore[assignment]
        self._tally = Tally(self._counts, self._workspace, self._synchronize)


def measure(layer: MoELayer, tokens: list[int], turns: int, slots: int, directory: Path) -> list[dict[str, object]]:
    """A row for each of `tokens`; `directory` gets arena and pages, and should be in memory."""
    most = max(tokens)
    row_bytes = layer.hidden_size * layer.dtype.itemsize
    arena = directory / "arena"
    arena.write_bytes(bytes(2 * most * row_bytes))
    mapped = torch.from_file(str(arena), shared=True, size=arena.stat().st_size, dtype=torch.uint8)
    x = torch.randn(most, layer.hidden_size, generator=torch.Generator().manual_seed(1)).to(layer.dtype)
    mapped[: most * row_bytes] = x.view(torch.uint8).flatten()

    def engine(kind: type[Engine], name: str) -> Engine:
        page = Page.create(directory / name, generation=1, slots=slots)
        return kind({_NAME: layer}, page=page, arena=arena, max_batch_tokens=most, programs=0)

    served, host, silent = (engine(kind, f"{place}.page") for place, kind in enumerate((Engine, _Silent, _Silent)))
    for each in (host, silent):
        assert isinstance(each, _Silent)
        each.forget_page(served, host=each is host)
    engines = (served, host, silent)
    rows: list[dict[str, object]] = []
    for count in tokens:
        batch = Batch(1, 1, _NAME, _segments(count, row_bytes, most * row_bytes))
        times_us: dict[Engine, list[float]] = {each: [] for each in engines}
        for turn in range(_WARM + turns):
            for each in engines if turn % 2 else engines[::-1]:
                took_us = _serve(each, batch)
                for other in engines:  # what has counted this launch on the device is common to all
                    other._workspace.launches = each._workspace.launches
                if turn >= _WARM:
                    times_us[each].append(took_us)
        with_us, host_us, without_us = (statistics.median(times_us[each]) for each in engines)
        rows.append(
            {
                "tokens": count,
                "with_us": round(with_us, 1),
                "host_us": round(host_us, 1),
                "without_us": round(without_us, 1),
                "cost": round(with_us / without_us - 1, 4),
                "host_cost": round(host_us / without_us - 1, 4),
                "turns": turns,
            }
        )
    return rows


def _segments(tokens: int, row_bytes: int, outputs_at: int) -> tuple[Segment, ...]:
    """As many requests as a batch of that size may well have."""
    starts = range(0, tokens, _SEGMENT_TOKENS)
    return tuple(
        Segment(start * row_bytes, outputs_at + start * row_bytes, min(_SEGMENT_TOKENS, tokens - start))
        for start in starts
    )


def _serve(engine: Engine, batch: Batch) -> float:
    """As the worker's loop does it, without the sockets; in microseconds."""
    started = time.perf_counter_ns()
    engine.check(batch)
    result = engine.run_fused(engine.load(batch), batch.layer)
    assert result is not None
    assert result.finite
    engine.store(result.y, batch)
    took_us = (time.perf_counter_ns() - started) / 1000
    engine.settle()
    return took_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="qwen3-30b-a3b")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 16, 256, 4096])
    parser.add_argument("--turns", type=int, default=400)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is there; times of an interpreter would say nothing")
    layer = MODELS[options.model].random_layer(torch.bfloat16, torch.device("cuda"))
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fdmoe-beats-") as directory, torch.inference_mode():
        rows = measure(layer, options.tokens, options.turns, GPU_SLOTS, Path(directory))
    about = {"model": options.model, **describe_machine(), "commit": options.commit, "command": reproduce()}
    write_rows([{**row, **about} for row in rows], options.csv)


if __name__ == "__main__":
    main()
