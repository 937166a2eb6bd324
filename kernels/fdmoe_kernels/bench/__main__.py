"""`python -m fdmoe_kernels.bench`: measure the one-launch layer, one CSV row a cell; draw and tabulate such a file."""

from __future__ import annotations

import argparse
import gc
import sys
from pathlib import Path

import torch

from fdmoe_kernels.bench.command import positive, reproduce
from fdmoe_kernels.bench.limits import limits_table
from fdmoe_kernels.bench.measuring import MODES, Plan, measure_model
from fdmoe_kernels.bench.models import DTYPES, MODELS, TOKENS
from fdmoe_kernels.bench.peers import Mode
from fdmoe_kernels.bench.plot import PlotError, draw
from fdmoe_kernels.bench.profiling import ProfileError, read_profile
from fdmoe_kernels.bench.rows import ResultError, Row, open_rows, read_rows
from fdmoe_kernels.bench.table import markdown_table
from fdmoe_kernels.timing import CudaTimer, Timer


def main(arguments: list[str] | None = None, timer: Timer | None = None, device: str = "cuda") -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        if options.table_from:
            sys.stdout.write(markdown_table(read_rows(options.table_from)))
        if options.limits_from:
            kernel, profile = options.limits_from
            sys.stdout.write(limits_table(read_rows(kernel), read_profile(profile)))
        if options.plot_from:
            draw(read_rows(options.plot_from), options.plot or [options.plot_from.with_suffix(".png")])
        if options.table_from or options.limits_from or options.plot_from:
            return 0
        if options.csv is None and (options.resume or options.plot):
            parser.error("--csv is missing; --resume and --plot need the file of the rows")
        if device == "cuda" and not torch.cuda.is_available():
            parser.error("no CUDA device is there; times of an interpreter would say nothing")
        given = sys.argv[1:] if arguments is None else arguments
        plan = Plan(
            timer or CudaTimer(), torch.device(device), options.runs, options.budget_s, options.commit, reproduce(given)
        )
        _measure(options, plan)
        if options.plot:
            draw(read_rows(options.csv), options.plot)
    except (FileNotFoundError, PlotError, ProfileError, ResultError) as error:
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fdmoe_kernels.bench", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=positive, default=list(TOKENS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--runs", type=positive, default=120, help="recorded runs of a variant; medians are reported")
    parser.add_argument("--budget-s", type=float, default=2.0, help="about how long a cell's runs may take in all")
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write, a row at a time; standard output otherwise")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the file has, measure the others")
    parser.add_argument("--plot", nargs="+", type=Path, help="pictures of the result (.png, .svg)")
    parser.add_argument("--plot-from", type=Path, metavar="CSV", help="measure nothing: draw this file's rows")
    parser.add_argument("--table-from", type=Path, metavar="CSV", help="measure nothing: print this file as Markdown")
    parser.add_argument(
        "--limits-from",
        type=Path,
        nargs=2,
        metavar=("CSV", "PROFILE"),
        help="measure nothing: print each cell's goals, and what this file of fdmoe_kernels.bench.profiling says of it",
    )
    return parser


def _measure(options: argparse.Namespace, plan: Plan) -> None:
    modes: tuple[Mode, ...] = tuple(options.modes)
    with open_rows(options.csv, resume=options.resume) as writer:
        for model in options.models:
            for dtype in options.dtypes:
                for row in measure_model(model, dtype, options.tokens, modes, plan, done=writer.done):
                    writer.write(row)
                    print(_progress(row), file=sys.stderr, flush=True)
                gc.collect()
                torch.cuda.empty_cache()


def _progress(row: Row) -> str:
    baseline = "none" if row.baseline_us is None else f"{row.baseline_us:.1f} us"
    peer = "none" if row.best_peer_us is None else f"{row.best_peer_us:.1f} us ({row.best_peer_ratio:.2f})"
    return (
        f"{row.model:14} {row.tokens:6} {row.dtype} {row.mode:5} fused {row.latency_us:8.1f} us, baseline {baseline}, "
        f"best peer {peer}, {row.floor_share:.0%} of the floor, beats {row.beats_share:+.1%}"
    )


if __name__ == "__main__":
    sys.exit(main())
