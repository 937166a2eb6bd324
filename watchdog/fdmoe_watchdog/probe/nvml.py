"""The NVML backend: libnvidia-ml through NVIDIA's own bindings (nvidia-ml-py)."""

from __future__ import annotations

import time
from typing import Any

import pynvml

from fdmoe_watchdog.messages import GpuReading, GpuSource, XidSeen
from fdmoe_watchdog.probe.asking import unreadable
from fdmoe_watchdog.probe.backend import Unreadable
from fdmoe_watchdog.probe.figures import Opened, read
from fdmoe_watchdog.probe.gpm import Gpm

_NO_INSTANCE = 0xFFFFFFFF  # what an event that belongs to no MIG instance has in their place


class NvmlBackend:
    source: GpuSource = "nvml"

    def open(self, device: str) -> NvmlDevice:
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise unreadable(error, "NVML does not start") from error
        try:
            return NvmlDevice(device, self.source)
        except pynvml.NVMLError as error:
            raise unreadable(error, f"device {device}") from error


class NvmlDevice:
    """A GPU, its MIG instances where it is in MIG mode, or one MIG instance by its UUID.

    Making one raises NVMLError or Unreadable.
    """

    def __init__(self, device: str, source: GpuSource) -> None:
        self._device = device
        self._source = source
        handle = _handle(device)
        self._board = _board(handle)
        self._gpus = tuple(_opened(found, self._board) for found in _instances(handle, self._board))
        if not self._gpus:
            raise Unreadable("no_device", f"device {device} is in MIG mode and has no instance")
        self._events = _xid_events(self._board)

    def read(self) -> GpuReading:
        begun_ns = time.monotonic_ns()
        gpus = tuple(read(gpu) for gpu in self._gpus)
        return GpuReading(self._device, self._source, begun_ns, self._events is not None, gpus)

    def wait_for_xid(self, timeout_s: float) -> XidSeen | None:
        if self._events is None:
            raise Unreadable("error", "the driver tells of no Xid")
        try:
            event = pynvml.nvmlEventSetWait_v2(self._events, round(timeout_s * 1000))
        except pynvml.NVMLError as error:
            if error.value == pynvml.NVML_ERROR_TIMEOUT:
                return None
            self._events = None
            raise unreadable(error, "waiting for Xids") from error
        instance = None if event.gpuInstanceId == _NO_INSTANCE else event.gpuInstanceId
        return XidSeen(self._device, self._source, event.eventData, time.monotonic_ns(), instance)


def _handle(device: str) -> Any:
    if device.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(device))
    return pynvml.nvmlDeviceGetHandleByUUID(device)


def _board(handle: Any) -> Any:
    """The GPU of a MIG instance; a GPU is its own."""
    if not _is_instance(handle):
        return handle
    return pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)


def _is_instance(handle: Any) -> bool:
    try:
        return bool(pynvml.nvmlDeviceIsMigDeviceHandle(handle).value)
    except pynvml.NVMLError:
        return False  # a driver that does not know MIG


def _instances(handle: Any, board: Any) -> list[Any]:
    """The handles that have memory and processes of their own."""
    if handle is not board:
        return [handle]
    try:
        current, _pending = pynvml.nvmlDeviceGetMigMode(board)
    except pynvml.NVMLError:
        return [handle]  # no MIG on this chip
    if current != pynvml.NVML_DEVICE_MIG_ENABLE:
        return [handle]
    found = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(board)):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(board, index))
        except pynvml.NVMLError as error:
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:
                raise
    return found


def _opened(handle: Any, board: Any) -> Opened:
    return Opened(
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        name=pynvml.nvmlDeviceGetName(board),
        handle=handle,
        board=board,
        gpm=Gpm(board) if handle is board else _gpm_of_instance(handle, board),
    )


def _gpm_of_instance(handle: Any, board: Any) -> Gpm | None:
    """None where its number is not to be had: the board's averages would be those of its neighbours too."""
    try:
        return Gpm(board, pynvml.nvmlDeviceGetGpuInstanceId(handle))
    except pynvml.NVMLError:
        return None


def _xid_events(board: Any) -> Any:
    """An event set that hears of the GPU's Xids; None where there is none to be had, which the readings say."""
    try:
        events = pynvml.nvmlEventSetCreate()
        pynvml.nvmlDeviceRegisterEvents(board, pynvml.nvmlEventTypeXidCriticalError, events)
    except pynvml.NVMLError:
        return None
    return events
