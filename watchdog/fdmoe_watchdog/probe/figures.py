"""One reading of one GPU or MIG instance: questions to NVML in, figures out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import pynvml

from fdmoe_watchdog.messages import GpuFigures, GpuProcess, RecoveryAction, ThrottleReason
from fdmoe_watchdog.probe.asking import Asker, ratio, scaled
from fdmoe_watchdog.probe.gpm import MIB, Gpm

_KIB = 1024
_ALL_LINKS = 0xFFFFFFFF  # the scope of the NVLink fields that stands for the sum of all links (nvml.h)
_RECOVERY_ACTIONS: tuple[RecoveryAction, ...] = get_args(RecoveryAction)
_THROTTLE_REASONS: dict[int, ThrottleReason] = {
    pynvml.nvmlClocksEventReasonGpuIdle: "gpu_idle",
    pynvml.nvmlClocksEventReasonApplicationsClocksSetting: "applications_clocks",
    pynvml.nvmlClocksEventReasonSwPowerCap: "sw_power_cap",
    pynvml.nvmlClocksEventReasonHwSlowdown: "hw_slowdown",
    pynvml.nvmlClocksEventReasonSyncBoost: "sync_boost",
    pynvml.nvmlClocksEventReasonSwThermalSlowdown: "sw_thermal",
    pynvml.nvmlClocksEventReasonHwThermalSlowdown: "hw_thermal",
    pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown: "hw_power_brake",
    pynvml.nvmlClocksEventReasonDisplayClockSetting: "display_clock",
}


@dataclass(frozen=True)
class Opened:
    """`handle` has memory and processes; `board` has all that a MIG instance shares with its neighbours. Both are the
    same for a whole GPU."""

    uuid: str
    name: str
    handle: Any
    board: Any
    gpm: Gpm | None


def read(gpu: Opened) -> GpuFigures:
    """Raises Unreadable when the driver has gone; every other failure leaves its figure out."""
    ask = Asker()
    gpm = gpu.gpm.since_before(ask) if gpu.gpm else {}
    figures: dict[str, Any] = {
        **_activity(ask, gpu, gpm),
        **_memory(ask, gpu),
        **_power_and_clocks(ask, gpu.board),
        **_links(ask, gpu.board, gpm),
        **_errors(ask, gpu.board),
    }
    return GpuFigures(uuid=gpu.uuid, name=gpu.name, fault=ask.fault, **figures)


def _activity(ask: Asker, gpu: Opened, gpm: dict[int, float]) -> dict[str, Any]:
    utilization = ask(pynvml.nvmlDeviceGetUtilizationRates, gpu.handle)
    # NVML has no utilisation of a MIG instance; GPM has
    percent = utilization.gpu if utilization is not None else gpm.get(pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL)
    return {
        "utilization": ratio(percent),
        "sm_activity": ratio(gpm.get(pynvml.NVML_GPM_METRIC_SM_UTIL)),
        "sm_occupancy": ratio(gpm.get(pynvml.NVML_GPM_METRIC_SM_OCCUPANCY)),
        "tensor_activity": ratio(gpm.get(pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL)),
        "dram_bandwidth": ratio(gpm.get(pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL)),
    }


def _memory(ask: Asker, gpu: Opened) -> dict[str, Any]:
    # the second version counts what the driver keeps for itself apart from what is used
    memory = ask(pynvml.nvmlDeviceGetMemoryInfo, gpu.handle, pynvml.nvmlMemory_v2)
    # by its version: the name without one raises something else than NVMLError where a driver lacks it
    processes = ask(pynvml.nvmlDeviceGetComputeRunningProcesses_v3, gpu.handle)
    return {
        "memory_total_bytes": memory and memory.total,
        "memory_used_bytes": memory and memory.used,
        "memory_free_bytes": memory and memory.free,
        "processes": None
        if processes is None
        else tuple(GpuProcess(process.pid, process.usedGpuMemory) for process in processes),
    }


def _power_and_clocks(ask: Asker, board: Any) -> dict[str, Any]:
    mask = ask(pynvml.nvmlDeviceGetCurrentClocksEventReasons, board)
    return {
        "power_watts": scaled(ask(pynvml.nvmlDeviceGetPowerUsage, board), 1e-3),
        "energy_joules": scaled(ask(pynvml.nvmlDeviceGetTotalEnergyConsumption, board), 1e-3),
        "temperature_celsius": ask(pynvml.nvmlDeviceGetTemperature, board, pynvml.NVML_TEMPERATURE_GPU),
        "sm_clock_hertz": scaled(ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_SM), 1e6),
        "memory_clock_hertz": scaled(ask(pynvml.nvmlDeviceGetClockInfo, board, pynvml.NVML_CLOCK_MEM), 1e6),
        "throttle_mask": mask,
        "throttle_reasons": None if mask is None else throttle_reasons(mask),
    }


def throttle_reasons(mask: int) -> tuple[ThrottleReason, ...]:
    known = sum(_THROTTLE_REASONS)
    named = tuple(reason for bit, reason in _THROTTLE_REASONS.items() if mask & bit)
    return (*named, "other") if mask & ~known else named


def _links(ask: Asker, board: Any, gpm: dict[int, float]) -> dict[str, Any]:
    received, transmitted = ask.fields(
        board,
        (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, _ALL_LINKS),
        (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, _ALL_LINKS),
    )
    return {
        "pcie_received_bytes_per_s": _pcie(
            ask, board, gpm.get(pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC), pynvml.NVML_PCIE_UTIL_RX_BYTES
        ),
        "pcie_transmitted_bytes_per_s": _pcie(
            ask, board, gpm.get(pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC), pynvml.NVML_PCIE_UTIL_TX_BYTES
        ),
        "nvlink_received_bytes_per_s": scaled(gpm.get(pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC), MIB),
        "nvlink_transmitted_bytes_per_s": scaled(gpm.get(pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC), MIB),
        "nvlink_received_bytes": None if received is None else int(received) * _KIB,
        "nvlink_transmitted_bytes": None if transmitted is None else int(transmitted) * _KIB,
    }


def _pcie(ask: Asker, board: Any, mib_per_s: float | None, counter: int) -> float | None:
    """The average from GPM; without it NVML counts KB for 20 ms, in which the call waits."""
    if mib_per_s is not None:
        return mib_per_s * MIB
    return scaled(ask(pynvml.nvmlDeviceGetPcieThroughput, board, counter), 1e3)


def _errors(ask: Asker, board: Any) -> dict[str, Any]:
    corrected, uncorrected, pending, failed = ask(pynvml.nvmlDeviceGetRemappedRows, board) or (None,) * 4
    # before Ampere pages are retired instead of rows remapped
    pages = ask(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, board)
    (action,) = ask.fields(board, (pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0))
    return {
        "ecc_corrected": _ecc(ask, board, pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
        "ecc_uncorrected": _ecc(ask, board, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        "remapped_rows_corrected": corrected,
        "remapped_rows_uncorrected": uncorrected,
        "remap_pending": _flag(pending),
        "remap_failed": _flag(failed),
        "retired_pages_pending": _flag(pages),
        "recovery_action": None if action is None else recovery_action(int(action)),
    }


def recovery_action(number: int) -> RecoveryAction:
    known = _RECOVERY_ACTIONS[:-1]
    return known[number] if 0 <= number < len(known) else "unknown"


def _ecc(ask: Asker, board: Any, kind: int) -> int | None:
    errors: int | None = ask(pynvml.nvmlDeviceGetTotalEccErrors, board, kind, pynvml.NVML_VOLATILE_ECC)
    return errors


def _flag(value: int | None) -> bool | None:
    return None if value is None else bool(value)
