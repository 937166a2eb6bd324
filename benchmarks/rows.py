"""What every row of a result says about where it was measured, and how rows are written."""

from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path

from fdmoe_kernels.bench.command import without


def describe_machine() -> dict[str, str]:
    """What every row of a result says about where it was measured."""
    import torch

    from fdmoe_kernels.hardware import device_name, software_versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device_name(device), "versions": software_versions()}


def reproduce() -> str:
    """The command that gave a result, less where it was written and what commit it was told."""
    kept = without(sys.argv[1:], ("--csv", "--commit"))
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def write_rows(rows: list[dict[str, object]], path: Path | None) -> None:
    """A result as CSV, to standard output without a path."""
    with path.open("w", newline="") if path else sys.stdout as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
