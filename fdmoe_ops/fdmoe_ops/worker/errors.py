"""What a worker can find wrong before it serves; importable without torch."""

from __future__ import annotations


class DeviceBroken(RuntimeError):
    """The device does not compute; the message says what it did."""
