"""What a worker can find wrong with what it works on; importable without torch."""

from __future__ import annotations


class DeviceBroken(RuntimeError):
    """The device does not compute; the message says what it did."""


class BaselineBroken(RuntimeError):
    """The baseline no longer gives what it gave at the warm-up, over the same weights; the message says by how much."""
