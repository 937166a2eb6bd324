"""The GPUs' families of the watchdog's metrics: one view in, fresh families out. What was not read is not exported.

`device` is the configuration's name of a GPU, `uuid` tells the MIG instances of one apart. The series of Xids have only
`device`: an Xid is the whole GPU's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fdmoe_watchdog.gpu_view import GpuView
from fdmoe_watchdog.messages import GpuFigures, RecoveryAction, ThrottleReason

Family = GaugeMetricFamily | CounterMetricFamily
_THROTTLE_REASONS: tuple[str, ...] = get_args(ThrottleReason)
_RECOVERY_ACTIONS: tuple[str, ...] = get_args(RecoveryAction)
_GAUGES = (
    ("fdmoe_gpu_utilization_ratio", "Share of time in which any kernel ran.", "utilization"),
    ("fdmoe_gpu_sm_activity_ratio", "Share of SMs that had a warp.", "sm_activity"),
    ("fdmoe_gpu_sm_occupancy_ratio", "Resident warps against what the SMs can hold.", "sm_occupancy"),
    ("fdmoe_gpu_tensor_activity_ratio", "Share of time in which tensor cores worked.", "tensor_activity"),
    ("fdmoe_gpu_dram_bandwidth_ratio", "Memory bandwidth against its peak.", "dram_bandwidth"),
    ("fdmoe_gpu_memory_used_bytes", "GPU memory that is allocated.", "memory_used_bytes"),
    ("fdmoe_gpu_memory_free_bytes", "GPU memory that is free.", "memory_free_bytes"),
    ("fdmoe_gpu_memory_total_bytes", "GPU memory in all, with what the driver keeps for itself.", "memory_total_bytes"),
    ("fdmoe_gpu_power_watts", "Power that the GPU draws.", "power_watts"),
    ("fdmoe_gpu_temperature_celsius", "Temperature of the GPU's core.", "temperature_celsius"),
    ("fdmoe_gpu_sm_clock_hertz", "Clock of the SMs.", "sm_clock_hertz"),
    ("fdmoe_gpu_memory_clock_hertz", "Clock of the memory.", "memory_clock_hertz"),
    ("fdmoe_gpu_remapped_rows_pending", "1 if memory rows wait for a reset to be remapped.", "remap_pending"),
    ("fdmoe_gpu_row_remapping_failed", "1 if a memory row could not be remapped.", "remap_failed"),
    ("fdmoe_gpu_retired_pages_pending", "1 if memory pages wait for a reset to be retired.", "retired_pages_pending"),
)
# family, help, the label, and a figure for each of its values
_LABELLED_GAUGES = (
    (
        "fdmoe_gpu_pcie_bytes_per_second",
        "Traffic over PCIe, as the GPU sees it.",
        "direction",
        {"received": "pcie_received_bytes_per_s", "transmitted": "pcie_transmitted_bytes_per_s"},
    ),
    (
        "fdmoe_gpu_nvlink_bytes_per_second",
        "Traffic over all NVLinks, as the GPU sees it.",
        "direction",
        {"received": "nvlink_received_bytes_per_s", "transmitted": "nvlink_transmitted_bytes_per_s"},
    ),
    (
        "fdmoe_gpu_remapped_rows",
        "Memory rows that were remapped, by the kind of error.",
        "error",
        {"corrected": "remapped_rows_corrected", "uncorrected": "remapped_rows_uncorrected"},
    ),
)
_LABELLED_COUNTERS = (
    (
        "fdmoe_gpu_nvlink_bytes",
        "Data over all NVLinks since the driver was loaded.",
        "direction",
        {"received": "nvlink_received_bytes", "transmitted": "nvlink_transmitted_bytes"},
    ),
    (
        "fdmoe_gpu_ecc_errors",
        "ECC errors since the driver was loaded.",
        "error",
        {"corrected": "ecc_corrected", "uncorrected": "ecc_uncorrected"},
    ),
)


class GpuCollector(Collector):
    """`views` gives the present views, one for each device."""

    def __init__(self, views: Callable[[], Iterable[GpuView]]) -> None:
        self._views = views

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        views = tuple(self._views())
        if not views:
            return
        for family in (*_of_devices(views), *_of_gpus(views)):
            if family.samples:
                yield family


def _of_devices(views: tuple[GpuView, ...]) -> Iterator[Family]:
    success = GaugeMetricFamily(
        "fdmoe_gpu_collector_success", "1 if the NVML probe reads this device.", labels=["device"]
    )
    watched = GaugeMetricFamily("fdmoe_gpu_xids_watched", "1 if the driver tells of Xids.", labels=["device"])
    xids = CounterMetricFamily("fdmoe_gpu_xid", "Xids that the driver reported.", labels=["device", "xid"])
    last = GaugeMetricFamily("fdmoe_gpu_xid_last_timestamp_seconds", "Unix time of the last Xid.", labels=["device"])
    for view in views:
        success.add_metric([view.device], float(view.collecting))
        if view.collecting:
            watched.add_metric([view.device], float(view.xids_watched))
        for label, count in view.xids.items():
            xids.add_metric([view.device, label], count)
        if view.last_xid_at is not None:
            last.add_metric([view.device], view.last_xid_at)
    yield from (success, watched, xids, last)


def _of_gpus(views: tuple[GpuView, ...]) -> Iterator[Family]:
    gpus = tuple((view, gpu) for view in views for gpu in view.gpus)
    info = GaugeMetricFamily(
        "fdmoe_gpu_info", "1; `source` is `recorded` where no GPU is read.", labels=["device", "uuid", "name", "source"]
    )
    for view, gpu in gpus:
        info.add_metric([view.device, gpu.uuid, gpu.name, view.source], 1.0)
    yield info
    for name, text, figure in _GAUGES:
        yield _plain(GaugeMetricFamily(name, text, labels=["device", "uuid"]), gpus, figure)
    energy = CounterMetricFamily(
        "fdmoe_gpu_energy_joules", "Energy since the driver was loaded.", labels=["device", "uuid"]
    )
    yield _plain(energy, gpus, "energy_joules")
    for name, text, label, figures in _LABELLED_GAUGES:
        yield _labelled(GaugeMetricFamily(name, text, labels=["device", "uuid", label]), gpus, figures)
    for name, text, label, figures in _LABELLED_COUNTERS:
        yield _labelled(CounterMetricFamily(name, text, labels=["device", "uuid", label]), gpus, figures)
    yield from _states(gpus)


def _plain(family: Family, gpus: Iterable[tuple[GpuView, GpuFigures]], figure: str) -> Family:
    return _labelled(family, gpus, {None: figure})


def _labelled(
    family: Family, gpus: Iterable[tuple[GpuView, GpuFigures]], figures: dict[str, str] | dict[None, str]
) -> Family:
    for view, gpu in gpus:
        for label, figure in figures.items():
            value: float | None = getattr(gpu, figure)
            if value is not None:
                family.add_metric([view.device, gpu.uuid, *([label] if label else [])], float(value))
    return family


def _states(gpus: tuple[tuple[GpuView, GpuFigures], ...]) -> Iterator[Family]:
    """Families with a series for each value of a closed set, 1 for those that hold."""
    processes = GaugeMetricFamily(
        "fdmoe_gpu_compute_processes", "Processes with a context on the GPU.", labels=["device", "uuid"]
    )
    throttled = GaugeMetricFamily(
        "fdmoe_gpu_throttled", "1 for each reason that holds the clocks down.", labels=["device", "uuid", "reason"]
    )
    actions = GaugeMetricFamily(
        "fdmoe_gpu_recovery_action", "1 for what the driver asks to be done.", labels=["device", "uuid", "action"]
    )
    for view, gpu in gpus:
        if gpu.processes is not None:
            processes.add_metric([view.device, gpu.uuid], len(gpu.processes))
        for reason in _THROTTLE_REASONS if gpu.throttle_reasons is not None else ():
            throttled.add_metric([view.device, gpu.uuid, reason], float(reason in (gpu.throttle_reasons or ())))
        for action in _RECOVERY_ACTIONS if gpu.recovery_action is not None else ():
            actions.add_metric([view.device, gpu.uuid, action], float(action == gpu.recovery_action))
    yield from (processes, throttled, actions)
