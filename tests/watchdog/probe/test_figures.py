"""What NVML says and does not say: exact figures through NVIDIA's own bindings, over a library that is scripted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pynvml
import pytest
from fake_nvml import GPU_UUID, MIG_UUID, FakeNvml
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_watchdog.messages import GpuFigures, GpuProcess, GpuReading, XidSeen, decode, encode
from fdmoe_watchdog.probe.asking import ratio
from fdmoe_watchdog.probe.backend import Unreadable
from fdmoe_watchdog.probe.figures import recovery_action, throttle_reasons
from fdmoe_watchdog.probe.nvml import NvmlBackend

FIRST = GPU_UUID.format(index=0)
MEMORY = {"memory_total_bytes": 150_754_820_096, "memory_used_bytes": 50_112_043_008, "memory_free_bytes": 10**11}
PROCESSES = (GpuProcess(4711, 30_000_000_000), GpuProcess(4712, None))
# the second reading of an H200: everything is there
WHOLE = GpuFigures(
    uuid=FIRST,
    name="NVIDIA H200",
    utilization=1.0,
    sm_activity=1.0,
    sm_occupancy=0.06,
    tensor_activity=0.0,
    dram_bandwidth=0.005,
    **MEMORY,
    processes=PROCESSES,
    power_watts=139.0,
    energy_joules=5000.5,
    temperature_celsius=41,
    sm_clock_hertz=1.98e9,
    memory_clock_hertz=3.201e9,
    throttle_mask=0x24,
    throttle_reasons=("sw_power_cap", "sw_thermal"),
    pcie_received_bytes_per_s=4.0 * 2**20,
    pcie_transmitted_bytes_per_s=2.0 * 2**20,
    nvlink_received_bytes_per_s=2.0**20,
    nvlink_transmitted_bytes_per_s=0.0,
    nvlink_received_bytes=2 * 2**20,
    nvlink_transmitted_bytes=2**20,
    ecc_corrected=3,
    ecc_uncorrected=0,
    remapped_rows_corrected=1,
    remapped_rows_uncorrected=0,
    remap_pending=False,
    remap_failed=False,
    recovery_action="none",
)
ABSENT = GpuFigures(uuid=FIRST, name="NVIDIA H200")
# every function that a reading calls; the handle and the name come first
QUESTIONS = (
    "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetTemperature",
    "nvmlDeviceGetClockInfo", "nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetPcieThroughput",
    "nvmlDeviceGetTotalEccErrors", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetRetiredPagesPendingStatus",
    "nvmlDeviceGetFieldValues", "nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleGet",
    "nvmlGpmMetricsGet",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _real_library_afterwards() -> Iterator[None]:
    yield
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()


def second_reading(device: str = "0", **script: Any) -> GpuReading:
    FakeNvml(**script).install()
    opened = NvmlBackend().open(device)
    opened.read()
    return opened.read()


def figures(**script: Any) -> GpuFigures:
    (gpu,) = second_reading(**script).gpus
    return gpu


def without(*names: str) -> dict[str, Any]:
    return {name: getattr(WHOLE, name) for name in GpuFigures.__struct_fields__ if name not in names}


def test_everything_is_there() -> None:
    reading = second_reading()
    assert (reading.device, reading.source, reading.xids_watched) == ("0", "nvml", True)
    assert reading.gpus == (WHOLE,)
    assert decode(encode(reading)) == reading


def test_a_gpu_by_its_uuid() -> None:
    reading = second_reading(GPU_UUID.format(index=1), gpus=2)
    assert [gpu.uuid for gpu in reading.gpus] == [GPU_UUID.format(index=1)]


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION, 999])
def test_what_fails_is_absent_and_never_zero(code: int) -> None:
    assert figures(errors=dict.fromkeys(QUESTIONS, code)) == ABSENT


def test_an_old_driver_without_the_functions() -> None:
    assert figures(missing=QUESTIONS) == ABSENT


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        ("nvmlDeviceGetUtilizationRates", ()),  # GPM's graphics utilisation takes its place
        ("nvmlDeviceGetMemoryInfo_v2", ("memory_total_bytes", "memory_used_bytes", "memory_free_bytes")),
        ("nvmlDeviceGetComputeRunningProcesses_v3", ("processes",)),
        ("nvmlDeviceGetPowerUsage", ("power_watts",)),
        ("nvmlDeviceGetTotalEnergyConsumption", ("energy_joules",)),
        ("nvmlDeviceGetTemperature", ("temperature_celsius",)),
        ("nvmlDeviceGetClockInfo", ("sm_clock_hertz", "memory_clock_hertz")),
        ("nvmlDeviceGetCurrentClocksEventReasons", ("throttle_mask", "throttle_reasons")),
        ("nvmlDeviceGetTotalEccErrors", ("ecc_corrected", "ecc_uncorrected")),
        ("nvmlDeviceGetFieldValues", ("nvlink_received_bytes", "nvlink_transmitted_bytes", "recovery_action")),
    ],
)
def test_one_call_that_fails_takes_its_own_figures_only(function: str, gone: tuple[str, ...]) -> None:
    expected = without(*gone) | ({"utilization": 0.99} if function == "nvmlDeviceGetUtilizationRates" else {})
    assert figures(errors={function: pynvml.NVML_ERROR_NOT_SUPPORTED}) == GpuFigures(**expected)


def test_a_chip_without_gpm_counts_pcie_another_way() -> None:
    gpm = ("sm_activity", "sm_occupancy", "tensor_activity", "dram_bandwidth")
    rates = ("nvlink_received_bytes_per_s", "nvlink_transmitted_bytes_per_s")
    pcie = {"pcie_received_bytes_per_s": 9000.0, "pcie_transmitted_bytes_per_s": 7000.0}
    assert figures(values={"gpm": {}}) == GpuFigures(**(without(*gpm, *rates) | pcie))


def test_the_first_reading_has_no_average_yet_and_a_lost_sample_costs_one_reading() -> None:
    fake = FakeNvml(errors={"nvmlGpmSampleGet": [0, 0, 999]}).install()
    opened = NvmlBackend().open("0")
    activity = [opened.read().gpus[0].sm_activity for _ in range(6)]
    # the third sample fails: no pair for it nor for the next
    assert activity == [None, 1.0, None, None, 1.0, 1.0]
    assert fake.calls.count("nvmlGpmSampleAlloc") == 2


def test_numbers_that_stand_for_nothing_are_absent() -> None:
    gpu = figures(values={"energy_mj": 2**64 - 1, "power_mw": 2**32 - 1, "gpm": {2: math.nan, 3: -1.0, 10: 5000.0}})
    assert (gpu.energy_joules, gpu.power_watts, gpu.sm_activity, gpu.sm_occupancy, gpu.dram_bandwidth) == (None,) * 5


@pytest.mark.parametrize(
    ("code", "fault"), [(pynvml.NVML_ERROR_GPU_IS_LOST, "lost"), (pynvml.NVML_ERROR_RESET_REQUIRED, "reset_required")]
)
def test_a_lost_gpu_is_told_as_such(code: int, fault: str) -> None:
    assert figures(errors=dict.fromkeys(QUESTIONS, code)) == GpuFigures(uuid=FIRST, name="NVIDIA H200", fault=fault)


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_UNINITIALIZED, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_a_driver_that_is_replaced_ends_the_reading(code: int) -> None:
    with pytest.raises(Unreadable, match="the driver ended"):
        second_reading(errors={"nvmlDeviceGetPowerUsage": code})


@pytest.mark.parametrize(
    ("script", "device", "trouble", "reason"),
    [
        ({"errors": {"nvmlInitWithFlags": 9}}, "0", "no_driver", "NVML does not start: Driver Not Loaded"),
        ({"errors": {"nvmlInitWithFlags": 4}}, "0", "no_permission", "NVML does not start: Insufficient Permissions"),
        ({}, "3", "no_device", "device 3: Invalid Argument"),
        ({}, "GPU-nobody", "no_device", "device GPU-nobody: Not Found"),
        ({"errors": {"nvmlDeviceGetUUID": 15}}, "0", "error", "device 0: GPU is lost"),
    ],
)
def test_what_cannot_be_opened(script: dict[str, Any], device: str, trouble: str, reason: str) -> None:
    FakeNvml(**script).install()
    with pytest.raises(Unreadable) as caught:
        NvmlBackend().open(device)
    assert (caught.value.trouble, str(caught.value)) == (trouble, reason)


def test_a_machine_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", nothing)
    with pytest.raises(Unreadable) as caught:
        NvmlBackend().open("0")
    assert caught.value.trouble == "no_library"
    assert str(caught.value) == "NVML does not start: NVML Shared Library Not Found"


# ---- MIG


def test_a_gpu_in_mig_mode_is_read_as_its_instances() -> None:
    reading = second_reading(mig=2)
    assert [gpu.uuid for gpu in reading.gpus] == [MIG_UUID.format(index=0), MIG_UUID.format(index=1)]
    # memory, processes and GPM are the instance's, utilisation comes from GPM, the rest is the board's
    assert reading.gpus[1] == GpuFigures(**(without() | {"uuid": MIG_UUID.format(index=1), "utilization": 0.99}))


def test_one_mig_instance_by_its_uuid() -> None:
    assert [gpu.uuid for gpu in second_reading(MIG_UUID.format(index=1), mig=2).gpus] == [MIG_UUID.format(index=1)]


def test_an_instance_without_its_number_has_no_averages_rather_than_its_gpus() -> None:
    reading = second_reading(mig=1, errors={"nvmlDeviceGetGpuInstanceId": pynvml.NVML_ERROR_NO_PERMISSION})
    (gpu,) = reading.gpus
    assert (gpu.utilization, gpu.sm_activity, gpu.dram_bandwidth) == (None, None, None)
    assert (gpu.memory_used_bytes, gpu.power_watts) == (WHOLE.memory_used_bytes, 139.0)


# ---- Xids


def test_xids_come_in_their_order() -> None:
    FakeNvml(xids=(13, 94)).install()
    opened = NvmlBackend().open("0")
    seen = [opened.wait_for_xid(0.01) for _ in range(3)]
    assert seen[2] is None
    assert [(found.device, found.source, found.xid, found.gpu_instance) for found in seen if found] == [
        ("0", "nvml", 13, None),
        ("0", "nvml", 94, None),
    ]
    assert isinstance(seen[0], XidSeen)
    assert decode(encode(seen[0])) == seen[0]


@pytest.mark.parametrize("function", ["nvmlEventSetCreate", "nvmlDeviceRegisterEvents"])
def test_a_driver_that_tells_of_no_xid_is_no_reason_to_read_nothing(function: str) -> None:
    reading = second_reading(errors={function: pynvml.NVML_ERROR_NOT_SUPPORTED})
    assert not reading.xids_watched
    assert reading.gpus == (WHOLE,)


def test_waiting_for_xids_that_ends_is_told() -> None:
    FakeNvml(errors={"nvmlEventSetWait_v2": pynvml.NVML_ERROR_GPU_IS_LOST}).install()
    opened = NvmlBackend().open("0")
    assert opened.read().xids_watched
    with pytest.raises(Unreadable, match="waiting for Xids: GPU is lost"):
        opened.wait_for_xid(0.01)
    assert not opened.read().xids_watched


# ---- words


@pytest.mark.parametrize(
    ("mask", "reasons"),
    [
        (0, ()),
        (1, ("gpu_idle",)),
        (0x1FF, ("gpu_idle", "applications_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal",
                 "hw_thermal", "hw_power_brake", "display_clock")),
        (1 << 40, ("other",)),
        (0x88 | 1 << 12, ("hw_slowdown", "hw_power_brake", "other")),
    ],
)  # fmt: skip
def test_throttle_reasons(mask: int, reasons: tuple[str, ...]) -> None:
    assert throttle_reasons(mask) == reasons


def test_recovery_actions_are_nvmls_numbers() -> None:
    names = {
        "NONE": "none", "GPU_RESET": "reset_gpu", "NODE_REBOOT": "reboot_node", "DRAIN_P2P": "drain_p2p",
        "DRAIN_AND_RESET": "drain_and_reset", "RECOVER_IMEX_DOMAIN": "recover_imex_domain", "BUS_RESET": "reset_bus",
        "SYSTEM_REBOOT": "reboot_system",
    }  # fmt: skip
    for constant, name in names.items():
        assert recovery_action(getattr(pynvml, f"NVML_GPU_RECOVERY_ACTION_{constant}")) == name
    assert (recovery_action(8), recovery_action(-1)) == ("unknown", "unknown")


@given(st.floats())
def test_a_ratio_is_one_or_absent(percent: float) -> None:
    found = ratio(percent)
    assert found is None or 0 <= found <= 1
    assert (found is None) == (not 0 <= percent <= 101)
