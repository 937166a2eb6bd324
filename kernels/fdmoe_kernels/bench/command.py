"""The command that gave a result, as its rows name it."""

from __future__ import annotations

import shlex

_LEFT_OUT = ("--csv", "--commit", "--resume", "--plot", "--output")


def reproduce(arguments: list[str], module: str = "fdmoe_kernels.bench") -> str:
    """The command that gives a result again, less where it is written and what commit it is told."""
    kept: list[str] = []
    skipping = False
    for word in arguments:
        name = word.partition("=")[0]
        if name.startswith("--"):
            skipping = name in _LEFT_OUT
        if not skipping:
            kept.append(word)
    return shlex.join(["python", "-m", module, *kept])
