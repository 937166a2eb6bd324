"""What a reader of GPUs can do: open one, read it, wait for its Xids."""

from __future__ import annotations

from typing import Protocol

from fdmoe_watchdog.messages import GpuReading, GpuSource, GpuTrouble, XidSeen


class Unreadable(Exception):
    """Nothing of a device can be read now; `trouble` says what kind of reason it is, the text is for people."""

    def __init__(self, trouble: GpuTrouble, reason: str) -> None:
        super().__init__(reason)
        self.trouble = trouble


class Device(Protocol):
    """An opened device. Its two calls are made by a thread each."""

    def read(self) -> GpuReading:
        """Raises Unreadable when it must be opened anew, which takes a new process."""

    def wait_for_xid(self, timeout_s: float) -> XidSeen | None:
        """None when none came in time. Raises Unreadable when it cannot be waited for any more."""


class Backend(Protocol):
    source: GpuSource

    def open(self, device: str) -> Device:
        """`device` is an index or a UUID. Raises Unreadable; another try later may succeed."""
