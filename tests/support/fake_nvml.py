"""A libnvidia-ml that is none: NVIDIA's own bindings call it as they call the real one, pointer for pointer.

`python -c "import fake_nvml; fake_nvml.main()" SCRIPT ...` runs the real probe over it; SCRIPT is FakeNvml's arguments
as JSON.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
from collections.abc import Callable
from typing import Any

import pynvml

GPU_UUID = "GPU-6c1e3a52-0000-4000-8000-00000000000{index}"
MIG_UUID = "MIG-9d2f4b63-0000-4000-8000-00000000000{index}"
H200 = {
    "utilization": 100,
    "memory": (150_754_820_096, 642_777_088, 100_000_000_000, 50_112_043_008),  # total, reserved, free, used
    "processes": ((4711, 30_000_000_000), (4712, 2**64 - 1)),
    "power_mw": 139_000,
    "energy_mj": 5_000_500,
    "temperature": 41,
    "clocks_mhz": {1: 1980, 2: 3201},
    "throttle": 0x4 | 0x20,
    "pcie_kb_per_s": {0: 7, 1: 9},
    "ecc": {0: 3, 1: 0},
    "remapped": (1, 0, 0, 0),
    "fields": {
        pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX: 2048,
        pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX: 1024,
        pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION: 0,
    },
    "gpm": {1: 99.0, 2: 100.0, 3: 6.0, 5: 0.0, 10: 0.5, 20: 2.0, 21: 4.0, 60: 1.0, 61: 0.0},
}


def _number(pointer: Any) -> int:
    return ctypes.cast(pointer, ctypes.c_void_p).value or 0


def _point(reference: Any, number: int) -> None:
    ctypes.c_void_p.from_buffer(reference._obj).value = number


class _Function:
    """Takes attributes, as a function of ctypes does."""

    def __init__(self, call: Callable[..., int]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class FakeNvml:
    """errors: the return code of a function, for ever or, as a list, for its next calls. blocked: functions that never
    return, or for the GPU blocked_gpu alone. missing: functions that an older driver has not. xids: numbers that events
    bring, one a wait. values: other answers than H200's. mig: how many MIG instances each GPU is divided into."""

    def __init__(
        self,
        *,
        gpus: int = 1,
        mig: int = 0,
        errors: dict[str, int | list[int]] | None = None,
        blocked: tuple[str, ...] = (),
        blocked_gpu: int | None = None,
        missing: tuple[str, ...] = (),
        xids: tuple[int, ...] = (),
        values: dict[str, Any] | None = None,
    ) -> None:
        self.gpus, self.mig = gpus, mig
        self.errors = errors or {}
        self.blocked, self.blocked_gpu, self.missing = blocked, blocked_gpu, missing
        self.xids = list(xids)
        self.values = H200 | (values or {})
        self.calls: list[str] = []
        self._samples = 0

    def install(self) -> FakeNvml:
        pynvml.nvmlLib = self
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return self

    def __getattr__(self, name: str) -> _Function:
        if not name.startswith("nvml") or name in self.missing:
            raise AttributeError(name)
        return _Function(lambda *arguments: self._answer(name, arguments))

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append(name)
        if name in self.blocked and self.blocked_gpu in (None, _number(arguments[0]) // 0x1000 - 1):
            threading.Event().wait()
        error = self.errors.get(name, 0)
        if isinstance(error, list):
            error = error.pop(0) if error else 0
        if error:
            return error
        answer = getattr(self, f"_{name}", None)
        if answer is None:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        return answer(*arguments) or pynvml.NVML_SUCCESS

    # ---- devices: GPU i is 0x1000 * (i + 1), its MIG instance k that + k + 1

    def _nvmlInitWithFlags(self, _flags: Any) -> None:
        pass

    def _nvmlErrorString(self, code: int) -> bytes:
        return b"error %d" % code

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:
        if index.value >= self.gpus:
            return pynvml.NVML_ERROR_INVALID_ARGUMENT
        _point(device, 0x1000 * (index.value + 1))
        return 0

    def _nvmlDeviceGetHandleByUUID(self, uuid: Any, device: Any) -> int:
        for index in range(self.gpus):
            board = 0x1000 * (index + 1)
            for number in (board, *(board + 1 + k for k in range(self.mig))):
                if uuid.value.decode() == self._uuid(number):
                    _point(device, number)
                    return 0
        return pynvml.NVML_ERROR_NOT_FOUND

    def _uuid(self, number: int) -> str:
        part = number % 0x1000
        return MIG_UUID.format(index=part - 1) if part else GPU_UUID.format(index=number // 0x1000 - 1)

    def _nvmlDeviceGetUUID(self, device: Any, buffer: Any, _size: Any) -> None:
        buffer.value = self._uuid(_number(device)).encode()

    def _nvmlDeviceGetName(self, _device: Any, buffer: Any, _size: Any) -> None:
        buffer.value = b"NVIDIA H200"

    def _nvmlDeviceIsMigDeviceHandle(self, device: Any, answer: Any) -> None:
        answer._obj.value = bool(_number(device) % 0x1000)

    def _nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, device: Any, answer: Any) -> None:
        _point(answer, _number(device) // 0x1000 * 0x1000)

    def _nvmlDeviceGetMigMode(self, _device: Any, current: Any, pending: Any) -> None:
        current._obj.value = pending._obj.value = bool(self.mig)

    def _nvmlDeviceGetMaxMigDeviceCount(self, _device: Any, count: Any) -> None:
        count._obj.value = 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: Any, answer: Any) -> int:
        if index.value >= self.mig:
            return pynvml.NVML_ERROR_NOT_FOUND
        _point(answer, _number(device) + 1 + index.value)
        return 0

    def _nvmlDeviceGetGpuInstanceId(self, device: Any, answer: Any) -> None:
        answer._obj.value = _number(device) % 0x1000 + 6

    # ---- figures

    def _nvmlDeviceGetUtilizationRates(self, device: Any, answer: Any) -> int:
        if _number(device) % 0x1000 or self.mig:
            return pynvml.NVML_ERROR_NOT_SUPPORTED
        answer._obj.gpu = self.values["utilization"]
        return 0

    def _nvmlDeviceGetMemoryInfo_v2(self, _device: Any, answer: Any) -> int:
        if answer._obj.version != pynvml.nvmlMemory_v2:
            return pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH
        memory = answer._obj
        memory.total, memory.reserved, memory.free, memory.used = self.values["memory"]
        return 0

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, _device: Any, count: Any, found: Any) -> int:
        processes = self.values["processes"]
        count._obj.value, room = len(processes), count._obj.value
        if room < len(processes):
            return pynvml.NVML_ERROR_INSUFFICIENT_SIZE
        for place, (pid, memory) in enumerate(processes):
            found[place].pid, found[place].usedGpuMemory = pid, memory
        return 0

    def _nvmlDeviceGetPowerUsage(self, _device: Any, answer: Any) -> None:
        answer._obj.value = self.values["power_mw"]

    def _nvmlDeviceGetTotalEnergyConsumption(self, _device: Any, answer: Any) -> None:
        answer._obj.value = self.values["energy_mj"]

    def _nvmlDeviceGetTemperature(self, _device: Any, _sensor: Any, answer: Any) -> None:
        answer._obj.value = self.values["temperature"]

    def _nvmlDeviceGetClockInfo(self, _device: Any, clock: Any, answer: Any) -> None:
        answer._obj.value = self.values["clocks_mhz"][clock.value]

    def _nvmlDeviceGetCurrentClocksEventReasons(self, _device: Any, answer: Any) -> None:
        answer._obj.value = self.values["throttle"]

    def _nvmlDeviceGetPcieThroughput(self, _device: Any, counter: Any, answer: Any) -> None:
        answer._obj.value = self.values["pcie_kb_per_s"][counter.value]

    def _nvmlDeviceGetTotalEccErrors(self, _device: Any, kind: Any, _counter: Any, answer: Any) -> None:
        answer._obj.value = self.values["ecc"][kind.value]

    def _nvmlDeviceGetRemappedRows(self, _device: Any, *answers: Any) -> None:
        for answer, value in zip(answers, self.values["remapped"], strict=True):
            answer._obj.value = value

    def _nvmlDeviceGetFieldValues(self, _device: Any, _count: Any, answers: Any) -> None:
        for answer in answers._obj:
            value = self.values["fields"].get(answer.fieldId)
            answer.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED if value is None else 0
            answer.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
            answer.value.ullVal = value or 0

    # ---- GPM

    def _nvmlGpmQueryDeviceSupport(self, _device: Any, answer: Any) -> None:
        answer._obj.isSupportedDevice = bool(self.values["gpm"])

    def _nvmlGpmSampleAlloc(self, answer: Any) -> None:
        self._samples += 1
        _point(answer, 0xA000 + self._samples)

    def _nvmlGpmSampleGet(self, _device: Any, _sample: Any) -> None:
        pass

    def _nvmlGpmMigSampleGet(self, device: Any, _instance: Any, _sample: Any) -> int:
        return pynvml.NVML_ERROR_INVALID_ARGUMENT if _number(device) % 0x1000 else 0

    def _nvmlGpmMetricsGet(self, asked: Any) -> int:
        asked = asked._obj
        if _number(asked.sample1) == _number(asked.sample2):
            return pynvml.NVML_ERROR_INVALID_ARGUMENT
        for place in range(asked.numMetrics):
            metric = asked.metrics[place]
            value = self.values["gpm"].get(metric.metricId)
            metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED if value is None else 0
            metric.value = value or 0.0
        return 0

    # ---- events

    def _nvmlEventSetCreate(self, answer: Any) -> None:
        _point(answer, 0xE000)

    def _nvmlDeviceRegisterEvents(self, device: Any, kinds: Any, _events: Any) -> int:
        expected = (pynvml.nvmlEventTypeXidCriticalError, 0)
        return 0 if (kinds.value, _number(device) % 0x1000) == expected else pynvml.NVML_ERROR_INVALID_ARGUMENT

    def _nvmlEventSetWait_v2(self, _events: Any, event: Any, timeout_ms: Any) -> int:
        if not self.xids:
            threading.Event().wait(timeout_ms.value / 1000)
            return pynvml.NVML_ERROR_TIMEOUT
        event._obj.eventType, event._obj.eventData = pynvml.nvmlEventTypeXidCriticalError, self.xids.pop(0)
        event._obj.gpuInstanceId = event._obj.computeInstanceId = 0xFFFFFFFF
        return 0


def main() -> None:
    """The probe's process over a fake library."""
    from fdmoe_watchdog.probe.__main__ import main as probe

    FakeNvml(**json.loads(sys.argv[1])).install()
    sys.exit(probe(sys.argv[2:]))
