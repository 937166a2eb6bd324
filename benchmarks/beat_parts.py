"""`python benchmarks/beat_parts.py`: which of a launch's beats costs a single token what.

The one-token kernel is built anew without one part of what it has for the watchdog, or with that part alone, and all
builds take turns over the same token: they differ in the lines of _PARTS and in nothing else. `cost` is against the
build with no part, and `given` names the parts that a build has. The builds are kept where the kernel's own are.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from rows import describe_machine, reproduce, write_rows

from fdmoe_kernels import MoELayer, Workspace, fused_moe
from fdmoe_kernels.bench.measuring import choose_batch, new_page
from fdmoe_kernels.bench.models import MODELS
from fdmoe_kernels.hopper import build
from fdmoe_kernels.timing import Run, captured, median_latency_us

# file and line of each
_PARTS = {
    "a beat an item": ("token.cuh", "if (warp == 0) beat(c, item, item.phase, WAIT_NONE, 0, 0, items);"),
    "a beat a wait": ("token.cuh", "if (!shown) beat(c, item, item.phase, reason, target, seen, items);"),
    "looks at the abort word": ("token.cuh", "load_host(p.page + PAGE_ABORT) == c.launch"),
    "a beat of who leaves": ("token.cuh", "if (warp == 0) beat(c, item, PHASE_LEFT, WAIT_NONE, 0, 0, items);"),
    "the line of the end": (
        "combine.cuh", "if (p.page != nullptr && thread < 4) store_host(p.page + PAGE_EXIT + 2 * thread, low, high);"
    ),
}  # fmt: skip
_ALL = frozenset(_PARTS)


def sources(parts: frozenset[str]) -> dict[str, str]:
    """The kernel's files with these parts alone. Raises ValueError if one is not in them, once."""
    files = build.sources()
    for part in _ALL - parts:
        name, line = _PARTS[part]
        if files[name].count(line) != 1:
            raise ValueError(f"{part} is {files[name].count(line)} times in {name}; it must be once: {line}")
        files[name] = files[name].replace(line, ";" if line.endswith(";") else "false")
    return files


def builds() -> Iterator[frozenset[str]]:
    """All parts, all but one, one, and none."""
    yield _ALL
    yield from (_ALL - {part} for part in _PARTS)
    yield from (frozenset({part}) for part in _PARTS)
    yield frozenset()


@contextlib.contextmanager
def built(parts: frozenset[str]) -> Iterator[None]:
    """What is loaded meanwhile has these parts."""
    build._loaded.clear()
    with mock.patch.object(build, "sources", return_value=sources(parts)):
        yield
    build._loaded.clear()


def measure(name: str, runs: int) -> list[dict[str, object]]:
    """A row a build, and one for the kernel as it is without a page."""
    layer = MODELS[name].random_layer(torch.bfloat16, torch.device("cuda"))
    x = choose_batch(name, 1, layer)
    outputs: dict[str, torch.Tensor] = {}
    launches: dict[str, Run] = {}
    kept: list[Workspace] = []

    def add(given: str, page: torch.Tensor | None) -> None:
        workspace = Workspace(layer, 1, page=page)
        kept.append(workspace)
        outputs[given] = torch.full_like(x, float("nan"))
        launches[given] = captured(_launch(x, layer, workspace, outputs[given]))

    for parts in builds():
        with built(parts):
            add(", ".join(part for part in _PARTS if part in parts) or "none", new_page(x.device))
    add("none, and no page", None)
    times_us = median_latency_us(launches, repetitions=runs)
    first = next(iter(outputs.values()))
    assert all(torch.equal(y, first) for y in outputs.values()), "a part changes the result"
    return [
        {
            "model": name,
            "tokens": 1,
            "given": given,
            "latency_us": round(time_us, 2),
            "cost_us": round(time_us - times_us["none"], 2),
            "cost": round(time_us / times_us["none"] - 1, 4),
            "runs": runs,
        }
        for given, time_us in times_us.items()
    ]


def _launch(x: torch.Tensor, layer: MoELayer, workspace: Workspace, y: torch.Tensor) -> Run:
    return lambda: fused_moe(x, layer, workspace, out=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["qwen3-30b-a3b", "olmoe"])
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is there; times of an interpreter would say nothing")
    rows = [row for name in options.models for row in measure(name, options.runs)]
    about = {**describe_machine(), "commit": options.commit, "command": reproduce()}
    write_rows([{**row, **about} for row in rows], options.csv)


if __name__ == "__main__":
    main()
