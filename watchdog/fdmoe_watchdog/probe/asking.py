"""One question to NVML at a time, each of which may fail: what it does not answer is None, and no wrong 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pynvml

from fdmoe_watchdog.messages import GpuFault, GpuTrouble
from fdmoe_watchdog.probe.backend import Unreadable

_FAULTS: dict[int, GpuFault] = {
    pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset_required",
}
_TROUBLES: dict[int, GpuTrouble] = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_library",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no_driver",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "no_driver",
    pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
    pynvml.NVML_ERROR_NOT_FOUND: "no_device",
    pynvml.NVML_ERROR_GPU_NOT_FOUND: "no_device",
    pynvml.NVML_ERROR_INVALID_ARGUMENT: "no_device",
}
# the driver was unloaded or replaced under this process, whose library is of no use any more
_ENDED = (
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
)
_NOT_AVAILABLE = (pynvml.NVML_VALUE_NOT_AVAILABLE_uint.value, pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value)
_VALUE_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}


def unreadable(error: pynvml.NVMLError, what: str) -> Unreadable:
    return Unreadable(_TROUBLES.get(error.value, "error"), f"{what}: {error}")


class Asker:
    """Asks for one reading. `fault` is what the answers said of the GPU as a whole.

    Raises Unreadable when the driver is not there any more.
    """

    def __init__(self) -> None:
        self.fault: GpuFault | None = None

    def __call__(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The call's answer, or None."""
        try:
            answer = call(*arguments)
        except pynvml.NVMLError as error:
            if error.value in _ENDED:
                raise unreadable(error, "the driver ended") from error
            self.fault = _FAULTS.get(error.value, self.fault)
            return None
        return None if isinstance(answer, int) and answer in _NOT_AVAILABLE else answer

    def fields(self, handle: Any, *fields: tuple[int, int]) -> tuple[int | float | None, ...]:
        """NVML field values by (field, scope), each with a result of its own."""
        answers = self(pynvml.nvmlDeviceGetFieldValues, handle, list(fields))
        if answers is None:
            return (None,) * len(fields)
        return tuple(_value(answer) for answer in answers)


def scaled(value: int | float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def ratio(percent: float | None) -> float | None:
    """0 to 1. Averages over an interval may pass 100 % by a little; what is far off is no measurement."""
    if percent is None or not math.isfinite(percent) or not 0 <= percent <= 101:
        return None
    return min(percent / 100, 1.0)


def _value(answer: Any) -> int | float | None:
    member = _VALUE_MEMBERS.get(answer.valueType)
    if answer.nvmlReturn != pynvml.NVML_SUCCESS or member is None:
        return None
    value: int | float = getattr(answer.value, member)
    return value
