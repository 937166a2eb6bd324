"""`python -m fdmoe_kernels.bench.budget`: what fewer CTAs cost the layer, and what they spare a neighbour.

The neighbour is a second process on the same device that multiplies 4096 x 4096 matrices in bfloat16. Without MPS the
device gives two processes turns of its whole self, and a budget of CTAs only shortens or lengthens ours; under MPS
their kernels run side by side. The column `mps` says which it was.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from fdmoe_kernels.bench.command import positive, reproduce
from fdmoe_kernels.bench.measuring import Plan, new_page
from fdmoe_kernels.bench.models import DTYPES, MODELS, random_tokens
from fdmoe_kernels.bench.neighbour import Neighbour, NeighbourError
from fdmoe_kernels.fused import MOST_PROGRAMS, fused_moe
from fdmoe_kernels.hardware import device_name, multiprocessors, software_versions
from fdmoe_kernels.timing import CudaTimer, Run, Timer
from fdmoe_kernels.warmup import warm_up
from fdmoe_kernels.workspace import Workspace

PROGRAMS = (1, 2, 4, 8, 16, 32, 64, 96)
_LAUNCHES_A_BATCH = 8


@dataclass(frozen=True, slots=True)
class BudgetRow:
    """One budget; times in microseconds.

    latency_us          the layer alone, median, cold L2     latency_beside_us    beside the neighbour, mean, warm
    neighbour_alone_us  a product, median                    neighbour_beside_us  beside a loop of our launches
    neighbour_share     neighbour_alone_us / neighbour_beside_us: what is left of its speed
    """

    model: str
    tokens: int
    programs: int
    latency_us: float
    neighbour_alone_us: float
    neighbour_beside_us: float
    neighbour_share: float
    latency_beside_us: float
    dtype: str
    mps: bool
    device: str
    versions: str
    commit: str
    command: str


def measure_budgets(
    model: str, tokens: int, dtype: str, budgets: list[int], seconds: float, plan: Plan
) -> Iterator[BudgetRow]:
    """A row for each number of CTAs. The neighbour is measured alone and beside us for `seconds` each time."""
    numbers = DTYPES[dtype]
    layer = MODELS[model].random_layer(numbers.dtype, plan.device)
    workspace = Workspace(layer, tokens, page=new_page(plan.device))
    warm_up(layer, workspace, precision=numbers.precision)
    x = random_tokens(layer, tokens)
    y = torch.empty_like(x)
    with Neighbour(plan.device.type) as neighbour:
        for programs in budgets:

            def launch(programs: int = programs) -> None:
                fused_moe(x, layer, workspace, out=y, programs=programs, precision=numbers.precision)

            run = plan.timer.captured(launch)
            latency = plan.timer.latency_us({"fused": run}, runs=plan.runs, budget_s=plan.budget_s)["fused"]
            neighbour.start(seconds)
            alone = neighbour.result()
            neighbour.start(seconds)
            latency_beside = _loop_beside(neighbour, run, plan.device)
            beside = neighbour.result()
            yield BudgetRow(
                model=model,
                tokens=tokens,
                programs=programs,
                latency_us=round(latency, 1),
                neighbour_alone_us=round(alone, 1),
                neighbour_beside_us=round(beside, 1),
                neighbour_share=round(alone / beside, 3),
                latency_beside_us=round(latency_beside, 1),
                dtype=dtype,
                mps=under_mps(),
                device=device_name(plan.device),
                versions=software_versions(),
                commit=plan.commit,
                command=plan.command,
            )


def _loop_beside(neighbour: Neighbour, run: Run, device: torch.device) -> float:
    """Launch until the neighbour has its result; mean microseconds of a launch."""
    began, launches = time.perf_counter(), 0
    while launches == 0 or not neighbour.answered():
        for _ in range(_LAUNCHES_A_BATCH):
            run()
        launches += _LAUNCHES_A_BATCH
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / launches * 1e6


def under_mps() -> bool:
    """NVIDIA's Multi-Process Service has its pipes where CUDA looks for them."""
    return (Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control").exists()


def main(arguments: list[str] | None = None, timer: Timer | None = None, device: str = "cuda") -> int:
    parser = argparse.ArgumentParser(prog="python -m fdmoe_kernels.bench.budget", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="qwen3-30b-a3b")
    parser.add_argument("--tokens", type=positive, default=256)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--programs", nargs="+", type=positive, help="numbers of CTAs; some, and all the device has")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long the neighbour is measured each time")
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write, a row at a time; standard output otherwise")
    options = parser.parse_args(arguments)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is there; times of an interpreter would say nothing")
    place = torch.device(device)
    budgets = options.programs or [*(n for n in PROGRAMS if n < multiprocessors(place)), multiprocessors(place)]
    if max(budgets) > MOST_PROGRAMS:
        parser.error(f"--programs has {max(budgets)}; {MOST_PROGRAMS} CTAs at most are allowed")
    command = reproduce(sys.argv[1:] if arguments is None else arguments, "fdmoe_kernels.bench.budget")
    plan = Plan(timer or CudaTimer(), place, runs=120, budget_s=1.0, commit=options.commit, command=command)
    with options.csv.open("w", newline="") if options.csv else sys.stdout as file:
        writer = csv.DictWriter(file, [field.name for field in fields(BudgetRow)], lineterminator="\n")
        writer.writeheader()
        try:
            for row in measure_budgets(options.model, options.tokens, options.dtype, budgets, options.seconds, plan):
                writer.writerow(asdict(row))
                file.flush()
        except NeighbourError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
