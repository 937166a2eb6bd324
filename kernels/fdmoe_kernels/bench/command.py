"""What the measuring commands share: how they read a number, and what gave a result, as its rows name it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Collection

_LEFT_OUT = ("--csv", "--commit", "--resume", "--plot", "--output")


def positive(text: str) -> int:
    """An option's whole number from 1 up, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def reproduce(arguments: list[str], module: str = "fdmoe_kernels.bench") -> str:
    """The command that gives a result again, less where it is written and what commit it is told."""
    return shlex.join(["python", "-m", module, *without(arguments, _LEFT_OUT)])


def without(arguments: list[str], options: Collection[str]) -> list[str]:
    """The command line less these options and the words behind them."""
    kept: list[str] = []
    skipping = False
    for word in arguments:
        name = word.partition("=")[0]
        if name.startswith("--"):
            skipping = name in options
        if not skipping:
            kept.append(word)
    return kept
