"""GPM, the GPU's performance counters (Hopper and newer): averages between two samples."""

from __future__ import annotations

import math
from typing import Any

import pynvml

from fdmoe_watchdog.probe.asking import Asker

MIB = 1024 * 1024
_METRICS = (
    pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL,
    pynvml.NVML_GPM_METRIC_SM_UTIL,
    pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
    pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
    pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
    pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
    pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC,
    pynvml.NVML_GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC,
)


class Gpm:
    """Two sample buffers that take turns. `gpu_instance` is None for a whole GPU."""

    def __init__(self, board: Any, gpu_instance: int | None = None) -> None:
        self._board = board
        self._gpu_instance = gpu_instance
        self._supported: bool | None = None
        self._before: Any = None
        self._free: list[Any] = []

    def since_before(self, ask: Asker) -> dict[int, float]:
        """By metric: percent, or MiB/s, since the last call. Nothing at the first one, and where there is no GPM."""
        if self._supported is None:
            support = ask(pynvml.nvmlGpmQueryDeviceSupport, self._board)
            self._supported = bool(support and support.isSupportedDevice)
        if not self._supported:
            return {}
        now = self._free.pop() if self._free else ask(pynvml.nvmlGpmSampleAlloc)
        if now is None:
            return {}
        before, self._before = self._before, None
        if before is not None:
            self._free.append(before)
        if not self._sample(ask, now):
            self._free.append(now)
            return {}
        self._before = now
        return self._between(ask, before, now) if before is not None else {}

    def _sample(self, ask: Asker, buffer: Any) -> bool:
        if self._gpu_instance is None:
            return ask(pynvml.nvmlGpmSampleGet, self._board, buffer) is not None
        return ask(pynvml.nvmlGpmMigSampleGet, self._board, self._gpu_instance, buffer) is not None

    def _between(self, ask: Asker, before: Any, now: Any) -> dict[int, float]:
        asked = pynvml.c_nvmlGpmMetricsGet_t()
        asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(_METRICS)
        asked.sample1, asked.sample2 = before, now
        for place, metric in enumerate(_METRICS):
            asked.metrics[place].metricId = metric
        if ask(pynvml.nvmlGpmMetricsGet, asked) is None:
            return {}
        answers = (asked.metrics[place] for place in range(len(_METRICS)))
        return {
            answer.metricId: answer.value
            for answer in answers
            if answer.nvmlReturn == pynvml.NVML_SUCCESS and math.isfinite(answer.value) and answer.value >= 0
        }
