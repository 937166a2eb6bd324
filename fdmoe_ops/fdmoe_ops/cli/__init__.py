"""The command line: `fdmoe`. Nothing below imports torch, triton or numpy: `fdmoe serve` becomes the watchdog."""

from __future__ import annotations

from fdmoe_ops.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    app()
