"""What every row of a result says about where it was measured, and how rows are written."""

from __future__ import annotations

import csv
import os
import shlex
import sys
from pathlib import Path

from fdmoe_kernels.bench.command import without


def describe_machine() -> dict[str, str]:
    """What every row of a result says about where it was measured."""
    import platform

    import torch
    import triton

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU, {os.cpu_count()} cores"
    versions = f"python {platform.python_version()} torch {torch.__version__} triton {triton.__version__}"
    return {"device": device, "versions": versions}


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
