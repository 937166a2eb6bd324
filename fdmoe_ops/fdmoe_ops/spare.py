"""A child of the watchdog that has imported everything and waits until it is wanted (fdmoe_watchdog.process.Spare)."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys


def add_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--spare",
        type=int,
        metavar="FD",
        help="write a byte there once all is imported, and wait; the other arguments come as a JSON list on stdin",
    )


def wait(descriptor: int) -> list[str] | None:
    """Everything is imported. The arguments to go on with, once this process is wanted; None if it never was."""
    # nobody may be listening any more: it is wanted already
    with contextlib.suppress(BrokenPipeError), open(descriptor, "wb", buffering=0) as ready:
        ready.write(b"\n")
    line = sys.stdin.readline()
    return json.loads(line) if line else None
