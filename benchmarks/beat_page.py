"""`python benchmarks/beat_page.py`: what of a launch's beats is the kernel's work, and what the way to the host.

One build over one layer and the same scratch memory takes turns with its beat page in the host's memory, as it serves,
with one in the device's own, and without one. The second has all the kernel's instructions for beats and for looks at
the abort word, and nothing crosses PCIe. `cost` is against no page.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rows import describe_machine, reproduce, write_rows

from fdmoe_kernels import MoELayer, Workspace, fused_moe
from fdmoe_kernels.bench.measuring import choose_batch, new_page
from fdmoe_kernels.bench.models import MODELS
from fdmoe_kernels.timing import Run, captured, median_latency_us


def measure(name: str, tokens: list[int], runs: int) -> list[dict[str, object]]:
    """A row for each token count, mode and place of the page."""
    device = torch.device("cuda")
    layer = MODELS[name].random_layer(torch.bfloat16, device)
    pages = {"the host's memory": new_page(device), "the device's memory": new_page(device).to(device), "none": None}
    memory = Workspace(layer, max(tokens))
    workspaces = {place: memory.with_page(page) for place, page in pages.items()}
    rows: list[dict[str, object]] = []
    for count in tokens:
        x = choose_batch(name, count, layer)
        y = torch.empty_like(x)
        eager = {place: _launch(x, layer, workspace, y) for place, workspace in workspaces.items()}
        for mode, launches in (("eager", eager), ("graph", {place: captured(run) for place, run in eager.items()})):
            times_us = median_latency_us(launches, repetitions=runs)
            rows += [
                {
                    "model": name,
                    "tokens": count,
                    "mode": mode,
                    "page": place,
                    "latency_us": round(time_us, 2),
                    "cost_us": round(time_us - times_us["none"], 2),
                    "cost": round(time_us / times_us["none"] - 1, 4),
                    "runs": runs,
                }
                for place, time_us in times_us.items()
            ]
    return rows


def _launch(x: torch.Tensor, layer: MoELayer, workspace: Workspace, y: torch.Tensor) -> Run:
    return lambda: fused_moe(x, layer, workspace, out=y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["qwen3-30b-a3b", "olmoe"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[1])
    parser.add_argument("--runs", type=int, default=6000)
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device is there; times of an interpreter would say nothing")
    rows = [row for name in options.models for row in measure(name, options.tokens, options.runs)]
    about = {**describe_machine(), "commit": options.commit, "command": reproduce()}
    write_rows([{**row, **about} for row in rows], options.csv)


if __name__ == "__main__":
    main()
