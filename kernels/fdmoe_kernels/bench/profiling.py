"""`python -m fdmoe_kernels.bench.profiling`: what limits a launch, as Nsight Compute's `ncu` sees it, a CSV row a cell.

Each cell is launched once under ncu, with a cold L2 and the clocks as they are. Hardware counters give shares of what
the device can do; samples of them over time give how long a launch takes until weights or products flow, and how long
it goes on after its last product. ncu needs the permission to read counters (NVIDIA's ERR_NVGPUCTRPERM page), and a few
seconds a cell.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

import torch

from fdmoe_kernels.bench.command import positive, reproduce
from fdmoe_kernels.bench.measuring import choose_batch, new_page
from fdmoe_kernels.bench.models import MODELS, TOKENS
from fdmoe_kernels.fused import fused_moe
from fdmoe_kernels.hardware import device_name, software_versions
from fdmoe_kernels.warmup import warm_up
from fdmoe_kernels.workspace import Workspace

_FORMS = {"moe_layer_kernel": "portable", "moe_layer": "hopper", "moe_layer_token": "one token"}
_SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "MemoryWorkloadAnalysis", "WarpStateStats", "PmSampling")
# batches up to this take less than a millisecond, and are sampled every microsecond or so
_FEW_TOKENS, _FINE_NS, _COARSE_NS = 256, 1_000, 10_000
_TIME, _CLOCK = "gpu__time_duration.sum", "gpc__cycles_elapsed.avg.per_second"
_SHARES = {
    "dram_share": "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_share": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "tensor_share": "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "issue_share": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
}
_ACTIVE = "TPC.TriageCompute.sm__cycles_active.avg"
_DRAM = "FBSP.TriageCompute.dramc__read_throughput.avg.pct_of_peak_sustained_elapsed"
_TENSOR = "TPC.TriageCompute.sm__pipe_tensor_cycles_active_realtime.avg.pct_of_peak_sustained_elapsed"
_INTERVAL = "profiler__pmsampler_interval_time"
_STALL, _STALL_END = "smsp__average_warps_issue_stalled_", "_per_issue_active.ratio"
_STALLS_SHOWN = 3
_LONGEST_FIELD = 1 << 24  # characters of a launch's samples of one kind, of which csv takes 128 KiB by itself
# of its highest: from then on, or until then, a stream of bytes or of products counts as flowing
_FLOWS = 0.3
# per cent of tensor cores' peak at the highest: from there on products are what a launch is made of, and not reading
_PRODUCTS, _NO_PRODUCTS = 50.0, 1.0


class ProfileError(RuntimeError):
    """ncu is not there, or did not say what is asked of it; the message has its words."""


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One launch. Shares are of the device's peak, over the whole launch; `*_flowing` without its begin and its end
    (of the DRAM the reads alone).

    begin_us  from the first sample to the first in which weights are read, or, where tensor cores are busy for half of
              the time or more, products are made, at a good part of the highest rate; with very many tokens these may
              be the router's
    end_us    from the last such sample of products (one token: of reading) to the last of the launch
    stalls    what warps wait for, or that they issue (selected), in Nsight Compute's words, with their shares
    """

    model: str
    tokens: int
    form: str
    duration_us: float
    sm_ghz: float
    dram_share: float
    l2_share: float
    tensor_share: float
    issue_share: float
    begin_us: float
    end_us: float
    dram_read_flowing: float
    tensor_flowing: float
    stalls: str
    device: str
    versions: str
    commit: str
    command: str


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m fdmoe_kernels.bench.profiling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=positive, default=list(TOKENS))
    parser.add_argument("--ncu", default="ncu", help="the program")
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    parser.add_argument("--launch", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device is there")
    if options.launch:
        _launch(options.models[0], options.tokens)
        return 0
    about = {
        "device": device_name(torch.device("cuda")),
        "versions": software_versions(),
        "commit": options.commit,
        "command": reproduce(sys.argv[1:] if arguments is None else arguments, "fdmoe_kernels.bench.profiling"),
    }
    try:
        with options.csv.open("w", newline="") if options.csv else contextlib.nullcontext(sys.stdout) as file:
            writer = csv.DictWriter(file, [field.name for field in fields(ProfileRow)], lineterminator="\n")
            writer.writeheader()
            for model in options.models:
                for row in _profile(model, options.tokens, options.ncu, about):
                    writer.writerow(asdict(row))
                    file.flush()
    except ProfileError as error:
        parser.error(str(error))
    return 0


def _launch(model: str, token_counts: Sequence[int]) -> None:
    """In the process under ncu: one launch of each batch between the profiler's start and stop."""
    device = torch.device("cuda")
    layer = MODELS[model].random_layer(torch.bfloat16, device)
    workspace = Workspace(layer, max(token_counts), page=new_page(device))
    warm_up(layer, workspace)
    for tokens in token_counts:
        x = choose_batch(model, tokens, layer)
        y = torch.empty_like(x)
        fused_moe(x, layer, workspace, out=y)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
        fused_moe(x, layer, workspace, out=y)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


def _profile(model: str, token_counts: Sequence[int], ncu: str, about: dict[str, str]) -> Iterator[ProfileRow]:
    few = [tokens for tokens in token_counts if tokens <= _FEW_TOKENS]
    many = [tokens for tokens in token_counts if tokens > _FEW_TOKENS]
    for counts, interval_ns in ((few, _FINE_NS), (many, _COARSE_NS)):
        if not counts:
            continue
        command = [
            ncu, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw",
            "--print-units", "base", "--print-metric-instances", "values",
            *(word for section in _SECTIONS for word in ("--section", section)),
            "--pm-sampling-interval", str(interval_ns),
            sys.executable, "-P", "-m", "fdmoe_kernels.bench.profiling", "--launch", "--models", model,
            "--tokens", *map(str, counts),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ProfileError(f"{ncu} cannot be started: {error}") from error
        if done.returncode != 0:
            raise ProfileError(f"{ncu} ended with {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
        found = read_launches(done.stdout)
        if len(found) != len(counts):
            raise ProfileError(f"{ncu} told of {len(found)} launches; {len(counts)} are needed: {done.stderr[-2000:]}")
        for tokens, values in zip(counts, found, strict=True):
            yield row_of(model, tokens, values, about)


def read_profile(path: Path) -> list[ProfileRow]:
    """All rows of a file that the command wrote. Raises ProfileError for a file with other columns, and for a value
    that is none."""
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        names = [field.name for field in fields(ProfileRow)]
        if reader.fieldnames != names:
            raise ProfileError(f"{path} has the columns {reader.fieldnames}; {names} are needed")
        kinds = get_type_hints(ProfileRow)
        try:
            return [ProfileRow(**{name: kinds[name](row[name]) for name in names}) for row in reader]
        except ValueError as error:
            raise ProfileError(f"{path}, line {reader.line_num}: {error}") from error


def read_launches(text: str) -> list[dict[str, str]]:
    """What ncu printed of each launch, by metric: `ncu --csv --page raw`, less its own words and the line of units."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    return list(csv.DictReader(lines[start:]))[1:]


def row_of(model: str, tokens: int, values: dict[str, str], about: dict[str, str]) -> ProfileRow:
    """Raises ProfileError for a metric that ncu did not give."""
    try:
        interval_us = _number(values[_INTERVAL]) / 1e3
        active, dram, tensor = (_samples(values[name]) for name in (_ACTIVE, _DRAM, _TENSOR))
        shares = {name: round(_number(values[metric]) / 100, 3) for name, metric in _SHARES.items()}
        duration_us, sm_ghz = _number(values[_TIME]) / 1e3, _number(values[_CLOCK]) / 1e9
    except (KeyError, ValueError) as error:
        raise ProfileError(f"{model}, {tokens} tokens: ncu did not give {error}") from error
    begin, end = _flowing(active, 0.0)
    first = _flowing(tensor if max(tensor) >= _PRODUCTS else dram, _FLOWS)[0]
    last = _flowing(dram if max(tensor) < _NO_PRODUCTS else tensor, _FLOWS)[1]
    between = slice(first, max(last, first + 1))
    return ProfileRow(
        model=model,
        tokens=tokens,
        form=_FORMS.get(values["Kernel Name"], values["Kernel Name"]),
        duration_us=round(duration_us, 1),
        sm_ghz=round(sm_ghz, 2),
        begin_us=round(max(first - begin, 0) * interval_us, 1),
        end_us=round(max(end - last, 0) * interval_us, 1),
        dram_read_flowing=round(sum(dram[between]) / len(dram[between]) / 100, 3),
        tensor_flowing=round(sum(tensor[between]) / len(tensor[between]) / 100, 3),
        stalls=_stalls(values),
        dram_share=shares["dram_share"],
        l2_share=shares["l2_share"],
        tensor_share=shares["tensor_share"],
        issue_share=shares["issue_share"],
        device=about["device"],
        versions=about["versions"],
        commit=about["commit"],
        command=about["command"],
    )


def _flowing(samples: Sequence[float], share: float) -> tuple[int, int]:
    """The first sample above this share of the highest, and the one after the last; (0, 0) where all are zero."""
    floor = share * max(samples)
    above = [number for number, sample in enumerate(samples) if sample > floor]
    return (above[0], above[-1] + 1) if above else (0, 0)


def _stalls(values: dict[str, str]) -> str:
    shares = {
        name.removeprefix(_STALL).removesuffix(_STALL_END): _number(value)
        for name, value in values.items()
        if name.startswith(_STALL) and name.endswith(_STALL_END)
    }
    total = sum(shares.values()) or 1.0
    longest = sorted(shares.items(), key=lambda pair: -pair[1])[:_STALLS_SHOWN]
    return ", ".join(f"{name} {share / total:.0%}" for name, share in longest)


def _number(value: str) -> float:
    """Of a metric, whose instances stand behind it in brackets."""
    return float(value.partition(" ")[0].replace(",", ""))


def _samples(value: str) -> list[float]:
    inside = value[value.index("(") + 1 : value.rindex(")")]
    return [float(sample.replace(",", "")) for sample in inside.split(";")]


if __name__ == "__main__":
    sys.exit(main())
