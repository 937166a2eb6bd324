"""Readings that block when they are told to, as those of a driver that hangs: for trees with chaos."""

from __future__ import annotations

import contextlib
import time

from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.messages import Block, GpuReading, XidSeen
from fdmoe_watchdog.probe.backend import Backend, Device


class BlockingBackend:
    """Of `backend`, but that the watchdog may have one reading block, of whichever device is read next."""

    def __init__(self, backend: Backend, channel: Channel) -> None:
        self.source = backend.source
        self._backend = backend
        self._channel = channel

    def open(self, device: str) -> Device:
        return _BlockingDevice(self._backend.open(device), self._channel)


class _BlockingDevice:
    def __init__(self, opened: Device, channel: Channel) -> None:
        self._opened = opened
        self._channel = channel

    def read(self) -> GpuReading:
        # a watchdog that is gone is seen where the reading is sent
        with contextlib.suppress(ChannelClosed):
            message = self._channel.receive()
            if isinstance(message, Block):
                time.sleep(message.seconds)
        return self._opened.read()

    def wait_for_xid(self, timeout_s: float) -> XidSeen | None:
        return self._opened.wait_for_xid(timeout_s)
