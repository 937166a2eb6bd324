"""The probe tells the watchdog what the driver says of GPUs."""

from __future__ import annotations

from typing import Literal

import msgspec

from fdmoe_watchdog.messages.base import Message

# where readings come from: the driver, or a file that is replayed where there is no GPU
GpuSource = Literal["nvml", "recorded"]
# NVML answers nothing else any more: the GPU fell off the bus, or must be reset first
GpuFault = Literal["lost", "reset_required"]
# NVML's recovery actions in its order from 0 (nvmlDeviceGpuRecoveryAction_t), and one for what a newer driver adds
RecoveryAction = Literal[
    "none",
    "reset_gpu",
    "reboot_node",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "reset_bus",
    "reboot_system",
    "unknown",
]
# why clocks are lower than they could be (nvmlClocksEventReasons); `other`: a reason that a newer driver adds
ThrottleReason = Literal[
    "gpu_idle",
    "applications_clocks",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal",
    "hw_thermal",
    "hw_power_brake",
    "display_clock",
    "other",
]
GpuTrouble = Literal["no_library", "no_driver", "no_permission", "no_device", "bad_recording", "error"]


class GpuProcess(msgspec.Struct, frozen=True, array_like=True):
    """A process with a context on the GPU. `memory_bytes` is None where the driver does not say."""

    pid: int
    memory_bytes: int | None


class GpuFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What NVML said of one GPU or MIG instance. None: it did not say, because the chip has no such counter, this
    process may not ask, or the call failed. Ratios are 0 to 1; energy, NVLink bytes and ECC errors count from the
    driver's last load.

    *_activity, sm_occupancy and dram_bandwidth are averages since the reading before (GPM, Hopper and newer).
    A MIG instance has memory, processes and GPM of its own; the rest is its GPU's.
    """

    uuid: str
    name: str
    fault: GpuFault | None = None
    utilization: float | None = None
    sm_activity: float | None = None
    sm_occupancy: float | None = None
    tensor_activity: float | None = None
    dram_bandwidth: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    throttle_mask: int | None = None
    throttle_reasons: tuple[ThrottleReason, ...] | None = None
    pcie_received_bytes_per_s: float | None = None
    pcie_transmitted_bytes_per_s: float | None = None
    nvlink_received_bytes_per_s: float | None = None
    nvlink_transmitted_bytes_per_s: float | None = None
    nvlink_received_bytes: int | None = None
    nvlink_transmitted_bytes: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows_corrected: int | None = None
    remapped_rows_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages_pending: bool | None = None
    recovery_action: RecoveryAction | None = None


class GpuReading(Message, frozen=True):
    """`device` was read, as the probe was told to call it: one GPU, or its MIG instances. `begun_ns` is CLOCK_MONOTONIC
    before the first question. `xids_watched` is False where the driver tells of no Xid."""

    device: str
    source: GpuSource
    begun_ns: int
    xids_watched: bool
    gpus: tuple[GpuFigures, ...]


class GpuFailed(Message, frozen=True):
    """Nothing of `device` can be read. Sent at each interval while that is so, in the place of a reading."""

    device: str
    source: GpuSource
    trouble: GpuTrouble
    reason: str


class XidSeen(Message, frozen=True):
    """The driver reported an Xid, seen at `at_ns` of CLOCK_MONOTONIC. `gpu_instance`: of which MIG instance."""

    device: str
    source: GpuSource
    xid: int
    at_ns: int
    gpu_instance: int | None = None
