"""`python -m fdmoe_kernels.tune`: search tile numbers on this device and write its tuning table.

Each candidate's result is compared with float32 before it is timed. Ctrl-C ends the search after the candidate in hand;
the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from fdmoe_kernels.bench.command import positive, reproduce
from fdmoe_kernels.bench.measuring import new_page
from fdmoe_kernels.bench.models import DTYPES, MODELS, TOKENS
from fdmoe_kernels.hardware import device_name, family, software_versions
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.tiles import TRITON, kinds_of
from fdmoe_kernels.timing import CudaTimer, Timer
from fdmoe_kernels.tune.journal import Journal, JournalError
from fdmoe_kernels.tune.merge import NoCommonRowError
from fdmoe_kernels.tune.progress import Progress
from fdmoe_kernels.tune.trials import DeviceLostError, Trials
from fdmoe_kernels.tune.tuner import Stopped, Tuner
from fdmoe_kernels.tuning.form import Form
from fdmoe_kernels.tuning.forms import FORMS
from fdmoe_kernels.tuning.tables import FOLDER, Kind, TableError, rows_of, slug, write_rows
from fdmoe_kernels.workspace import Workspace

_INTERRUPTED = 130


def main(arguments: list[str] | None = None, timer: Timer | None = None, device: str = "cuda") -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is there; times of an interpreter would say nothing")
    place = torch.device(device)
    numbers = DTYPES[options.dtype]
    form = FORMS[options.form]
    kind = _kinds(options)[0]
    if not form.supported(place, numbers.dtype):
        parser.error(f"{form.name} does not run on {device_name(place)} with {options.dtype}")
    output = options.output or FOLDER / f"{slug(device_name(place))}.json"
    versions = software_versions()
    origin = {"form": form.name, "dtype": options.dtype, "device": device_name(place), "versions": versions}
    command = reproduce(sys.argv[1:] if arguments is None else arguments, "fdmoe_kernels.tune")
    try:
        journal = Journal(output.with_name(f"{output.stem}.{form.name}.{kind}.journal"), origin, resume=options.resume)
        with closing(journal), _interrupts() as stopped:
            rows = _tune(options, form, place, timer or CudaTimer(), journal, stopped)
        description = f"Measured on one {origin['device']}, {versions}, commit {options.commit}: {command}"
        write_rows(output, form, kind, rows, description=description)
    except (JournalError, TableError) as error:
        parser.error(str(error))
    except (Stopped, KeyboardInterrupt):
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        return _INTERRUPTED
    except DeviceLostError as error:
        print(f"the device was lost; the same command with --resume leaves this out: {error}", file=sys.stderr)
        return 1
    except NoCommonRowError as error:
        print(f"no table is written: {error}", file=sys.stderr)
        return 1
    print(f"{output}: {len(rows)} row(s) of {form.name}, {kind}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fdmoe_kernels.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--form", choices=FORMS, required=True, help="the kind of kernel")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--tokens", nargs="+", type=positive, default=list(TOKENS), help="of each batch; 1 alone: rows for one token"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--minutes", type=float, default=20.0, help="about how long the search may take")
    parser.add_argument("--output", type=Path, help="table to write; the package's own for this device otherwise")
    parser.add_argument("--resume", action="store_true", help="go on with the journal beside the table")
    parser.add_argument("--commit", default="unknown", help="written into the table")
    return parser


def _kinds(options: argparse.Namespace) -> tuple[Kind, ...]:
    """The rows that are searched for, and those that serve where there are none."""
    numbers = DTYPES[options.dtype]
    return kinds_of(numbers.dtype, numbers.precision, alone=options.tokens == [1] and options.form == TRITON.name)


def _tune(
    options: argparse.Namespace,
    form: Form[Any],
    device: torch.device,
    timer: Timer,
    journal: Journal,
    stopped: Callable[[], bool],
) -> list[tuple[float, Any]]:
    numbers = DTYPES[options.dtype]
    kinds = _kinds(options)

    @functools.cache
    def layer_of(model: str) -> tuple[MoELayer, Workspace]:
        layer = MODELS[model].random_layer(numbers.dtype, device)
        return layer, Workspace(layer, max(options.tokens), page=new_page(device))

    def trials(model: str, tokens: int) -> Trials[Any]:
        layer, workspace = layer_of(model)
        return Trials(f"{model}/{tokens}", form, layer, workspace, tokens, timer, journal, numbers.precision)

    def start(average: float) -> Any:
        # without a table, the form's own defaults, if it has them for all fields
        tables = (rows_of(form, kind, family(), device_name(device)) for kind in kinds)
        return next((row for rows in tables for bound, row in rows if average <= bound), None) or form.row()

    cells = [functools.partial(trials, model, tokens) for model in options.models for tokens in options.tokens]
    progress = Progress(sys.stderr, len(cells))
    tuner = Tuner(
        form, cells, start, seconds=60 * options.minutes, clock=time.monotonic, stopped=stopped, progress=progress
    )
    return tuner.run()


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; pressed again, it interrupts at once."""
    asked = False

    def handle(number: int, _: object) -> None:
        nonlocal asked
        asked = True
        signal.signal(number, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
