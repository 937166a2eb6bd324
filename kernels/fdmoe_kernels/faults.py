"""Builds of the kernel that go wrong on purpose."""

from __future__ import annotations

from enum import IntEnum


class Fault(IntEnum):
    """For drills and tests. A fault is a constant of the build: NONE, which serves, carries no fault code."""

    NONE = 0
    STALL = 1  # one up tile never signals: all wait, and an abort ends it
    ENDLESS = 2  # one up tile never ends and never looks at the abort word: only a kill ends it
    NAN = 3  # one tile of the output is NaN
    WRONG = 4  # one tile of the output is finite and wrong
    SLOW = 5  # every up and down tile takes about ten times as long
    ILLEGAL = 6  # one up tile stores to an address that nobody has: the process loses its context, or its life
