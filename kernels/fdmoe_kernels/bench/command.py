"""The command that gave a result, as its rows name it."""

from __future__ import annotations

import shlex
from collections.abc import Collection

_LEFT_OUT = ("--csv", "--commit", "--resume", "--plot", "--output")


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
