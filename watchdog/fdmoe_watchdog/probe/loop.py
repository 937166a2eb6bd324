"""The probe's threads: two for each device, one that reads it and one that waits for its Xids.

A device whose calls block silences itself alone; what becomes of the process then is the keeper's to say.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

import structlog

from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.messages import GpuFailed, Message
from fdmoe_watchdog.probe.backend import Backend, Device, Unreadable

Send = Callable[[Message], None]
_WAIT_S = 1.0
# GPM needs 100 ms between two samples, also where an Xid asks for a reading at once
_LEAST_PAUSE_S = 0.1
# so that a storm of Xids does not fill the socket faster than the watchdog reads it
_XID_PAUSE_S = 0.02
logger = structlog.get_logger("fdmoe.probe")


def run(backend: Backend, devices: Sequence[str], send: Send, *, interval_s: float, retry_s: float) -> int:
    """Until the watchdog is gone, a driver ended under us, or a mistake of ours; returns the process's exit code."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    for device in devices:
        _start(_Reader(backend, device, send, interval_s, retry_s, ended), ended)
    return ended.get()


def _start(work: Callable[[], None], ended: queue.SimpleQueue[int]) -> None:
    def outermost() -> None:
        try:
            work()
        except ChannelClosed as error:
            logger.info("watchdog_left", reason=str(error))
            ended.put(1)
        except Exception:  # a thread's outermost loop, with which the process ends
            logger.exception("probe_broken")
            ended.put(1)

    threading.Thread(target=outermost, daemon=True).start()


class _Reader:
    """Opens a device, tells why while it cannot, and then reads it for ever."""

    def __init__(
        self,
        backend: Backend,
        device: str,
        send: Send,
        interval_s: float,
        retry_s: float,
        ended: queue.SimpleQueue[int],
    ) -> None:
        self._backend = backend
        self._device = device
        self._send = send
        self._interval_s = interval_s
        self._retry_s = retry_s
        self._ended = ended
        self._wake = threading.Event()

    def __call__(self) -> None:
        opened = self._open()
        _start(lambda: self._watch(opened), self._ended)
        pause = threading.Event()
        while True:
            try:
                reading = opened.read()
            except Unreadable as error:
                # only a process that loads the library anew can read what a new driver says
                self._tell(error)
                self._ended.put(1)
                return
            self._send(reading)
            pause.wait(_LEAST_PAUSE_S)
            self._wake.wait(max(self._interval_s - _LEAST_PAUSE_S, 0.0))
            self._wake.clear()

    def _open(self) -> Device:
        pause = threading.Event()
        while True:
            try:
                return self._backend.open(self._device)
            except Unreadable as error:
                waited_s = 0.0
                while waited_s < self._retry_s:
                    self._tell(error)
                    pause.wait(self._interval_s)
                    waited_s += self._interval_s

    def _tell(self, error: Unreadable) -> None:
        self._send(GpuFailed(self._device, self._backend.source, error.trouble, str(error)))

    def _watch(self, opened: Device) -> None:
        """An Xid is told at once, and its device read right after: the recovery action may have changed."""
        pause = threading.Event()
        while True:
            try:
                seen = opened.wait_for_xid(_WAIT_S)
            except Unreadable:
                return  # the readings say that Xids are not watched
            if seen is not None:
                self._send(seen)
                self._wake.set()
                pause.wait(_XID_PAUSE_S)
