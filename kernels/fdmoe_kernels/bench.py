"""`python -m fdmoe_kernels.bench`: the one-launch layer against the torch baseline, one CSV row a cell.

floor_us is the larger of flop / 790 TFLOP/s and touched weight bytes / 4300 GB/s, both measured on an H200.
"""

from __future__ import annotations

import argparse
import csv
import gc
import platform
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import triton

from fdmoe_kernels import MoELayer, RoutingRule, Workspace, baseline_moe, fused_moe, reference_moe, warm_up
from fdmoe_kernels.timing import captured, device_operations, median_latency_us
from fdmoe_watchdog import page as beat_page

# H, I, E, K, renormalize
MODELS = {
    "qwen3-30b-a3b": (2048, 768, 128, 8, True),
    "mixtral-8x7b": (4096, 14336, 8, 2, True),
    "olmoe": (2048, 1024, 64, 8, False),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_FLOPS = 790e12
_BYTES_PER_S = 4300e9
_SLOTS = 528


@dataclass(frozen=True)
class Row:
    """One cell of the table; times are medians in microseconds."""

    model: str
    tokens: int
    dtype: str
    mode: str
    latency_us: float
    no_beats_us: float
    baseline_us: float
    speedup: float
    floor_us: float
    floor_share: float
    operations: int
    baseline_operations: int
    relative_error: float
    baseline_relative_error: float
    device: str
    versions: str
    commit: str
    command: str


def random_layer(model: str, dtype: torch.dtype) -> MoELayer:
    """Random weights of a model's shape, scaled so that outputs are of order 1."""
    hidden, intermediate, experts, top_k, renormalize = MODELS[model]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda", dtype=dtype).mul_(shape[-1] ** -0.5)

    return MoELayer(
        draw(experts, hidden) * 2,
        draw(experts, 2 * intermediate, hidden),
        draw(experts, hidden, intermediate),
        RoutingRule(top_k, renormalize),
    )


def floor_us(layer: MoELayer, x: torch.Tensor) -> float:
    """The shortest time the touched weights or the arithmetic allow, in microseconds."""
    logits = x.float() @ layer.router.float().T
    chosen = torch.unique(torch.topk(logits, layer.routing.top_k).indices).numel()
    expert_size = 3 * layer.hidden_size * layer.intermediate_size
    touched = (chosen * expert_size + layer.router.numel()) * x.element_size()
    flop = 2 * x.shape[0] * (layer.routing.top_k * expert_size + layer.router.numel())
    return float(max(flop / _FLOPS, touched / _BYTES_PER_S) * 1e6)


def measure(
    model: str, tokens: int, dtype: str, layer: MoELayer, *, commit: str, command: str, repetitions: int
) -> list[Row]:
    """Eager and captured rows of one cell."""
    # tokens that point into different directions per row spread over all experts, as trained routers do
    x = torch.randn(tokens, layer.hidden_size, device="cuda", dtype=DTYPES[dtype])
    page = torch.zeros((beat_page.FIRST_SLOT + _SLOTS) * beat_page.LINE_WORDS, dtype=torch.int64).pin_memory()
    with_beats, without = Workspace(layer, tokens, page=page), Workspace(layer, tokens)
    for workspace in (with_beats, without):
        warm_up(layer, workspace)
    out, plain_out, baseline_out = (torch.full_like(x, float("nan")) for _ in range(3))

    def fused() -> None:
        fused_moe(x, layer, with_beats, out=out)

    def fused_without_beats() -> None:
        fused_moe(x, layer, without, out=plain_out)

    def baseline() -> None:
        baseline_moe(x, layer, out=baseline_out)

    variants = {"fused": fused, "no_beats": fused_without_beats, "baseline": baseline}
    rows = []
    for mode in ("eager", "graph"):
        if mode == "graph" and dtype != "bfloat16":
            continue  # the baseline's loop over experts reads counts on the host: it cannot be captured
        runs = variants if mode == "eager" else {name: captured(run) for name, run in variants.items()}
        times = median_latency_us(runs, repetitions=repetitions)
        reference = reference_moe(x, layer)
        assert torch.equal(out, plain_out)
        floor = floor_us(layer, x)
        rows.append(
            Row(
                model=model,
                tokens=tokens,
                dtype=dtype,
                mode=mode,
                latency_us=round(times["fused"], 1),
                no_beats_us=round(times["no_beats"], 1),
                baseline_us=round(times["baseline"], 1),
                speedup=round(times["baseline"] / times["fused"], 3),
                floor_us=round(floor, 1),
                floor_share=round(floor / times["fused"], 3),
                operations=device_operations(fused),
                baseline_operations=device_operations(baseline),
                relative_error=_error(out, reference),
                baseline_relative_error=_error(baseline_out, reference),
                device=torch.cuda.get_device_name(),
                versions=f"python {platform.python_version()} torch {torch.__version__} triton {triton.__version__}",
                commit=commit,
                command=command,
            )
        )
    return rows


def _error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float(f"{((y.float() - reference).norm() / reference.norm()).item():.2e}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fdmoe_kernels.bench", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 16, 64, 256, 1024, 4096, 16384])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--repetitions", type=int, default=60, help="rounds per cell; medians are reported")
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA device is there; times of an interpreter would say nothing")
    command = (
        f"python -m fdmoe_kernels.bench --models {' '.join(options.models)} "
        f"--tokens {' '.join(map(str, options.tokens))} --dtypes {' '.join(options.dtypes)}"
    )
    rows: list[Row] = []
    for model in options.models:
        for dtype in options.dtypes:
            layer = random_layer(model, DTYPES[dtype])
            for tokens in options.tokens:
                rows += measure(
                    model, tokens, dtype, layer, commit=options.commit, command=command, repetitions=options.repetitions
                )
                for row in rows[-2:]:
                    print(
                        f"{model:14} {row.tokens:6} {dtype} {row.mode:5} fused {row.latency_us:8.1f} us, without beats "
                        f"{row.no_beats_us:8.1f}, baseline {row.baseline_us:8.1f}, {row.floor_share:.0%} of the floor",
                        file=sys.stderr,
                        flush=True,
                    )
            del layer
            gc.collect()
            torch.cuda.empty_cache()
    with options.csv.open("w", newline="") if options.csv else sys.stdout as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
