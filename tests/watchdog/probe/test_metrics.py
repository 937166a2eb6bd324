"""The GPUs' part of the exposition, literally; what was not read is not in it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.gpu_metrics import GpuCollector
from fdmoe_watchdog.gpu_view import GpuView, holds_memory
from fdmoe_watchdog.messages import GpuFigures, GpuProcess, GpuReading, RecoveryAction, ThrottleReason
from fdmoe_watchdog.probe_keeper import ProbeKeeper, ProbePlan
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings
from fdmoe_watchdog.xid import LABELS

GIB, SECOND = 2**30, 10**9
BARE = GpuFigures(uuid="GPU-1", name="NVIDIA H200")
# the minimum that shows every family
FULL = GpuFigures(
    uuid="GPU-1",
    name="NVIDIA H200",
    utilization=1.0,
    sm_activity=0.97,
    sm_occupancy=0.06,
    tensor_activity=0.0,
    dram_bandwidth=0.77,
    memory_total_bytes=150754820096,
    memory_used_bytes=3221225472,
    memory_free_bytes=146890819584,
    processes=(GpuProcess(101, None),),
    power_watts=139.0,
    energy_joules=5000.5,
    temperature_celsius=41,
    sm_clock_hertz=1.98e9,
    memory_clock_hertz=3.2e9,
    throttle_mask=4,
    throttle_reasons=("sw_power_cap",),
    pcie_received_bytes_per_s=1.0,
    pcie_transmitted_bytes_per_s=2.0,
    nvlink_received_bytes_per_s=3.0,
    nvlink_transmitted_bytes_per_s=4.0,
    nvlink_received_bytes=5,
    nvlink_transmitted_bytes=6,
    ecc_corrected=7,
    ecc_uncorrected=0,
    remapped_rows_corrected=8,
    remapped_rows_uncorrected=9,
    remap_pending=True,
    remap_failed=False,
    retired_pages_pending=False,
    recovery_action="reset_gpu",
)


def view(*gpus: GpuFigures, **changes: Any) -> GpuView:
    values: dict[str, Any] = {
        "device": "cuda:0", "collecting": bool(gpus), "reason": "" if gpus else "silent", "source": "nvml",
        "xids_watched": bool(gpus), "xids": {}, "last_xid_at": None, "gpus": gpus,
    }  # fmt: skip
    return GpuView(**(values | changes))


def text(*views: GpuView) -> str:
    registry = CollectorRegistry()
    registry.register(GpuCollector(lambda: views))
    return generate_latest(registry).decode()


def samples(*views: GpuView) -> list[str]:
    return [line for line in text(*views).splitlines() if not line.startswith("#")]


WHOLE = """\
# HELP fdmoe_gpu_collector_success 1 if the NVML probe reads this device.
# TYPE fdmoe_gpu_collector_success gauge
fdmoe_gpu_collector_success{device="cuda:0"} 1.0
# HELP fdmoe_gpu_xids_watched 1 if the driver tells of Xids.
# TYPE fdmoe_gpu_xids_watched gauge
fdmoe_gpu_xids_watched{device="cuda:0"} 1.0
# HELP fdmoe_gpu_xid_total Xids that the driver reported.
# TYPE fdmoe_gpu_xid_total counter
fdmoe_gpu_xid_total{device="cuda:0",xid="13"} 2.0
fdmoe_gpu_xid_total{device="cuda:0",xid="other"} 0.0
# HELP fdmoe_gpu_xid_last_timestamp_seconds Unix time of the last Xid.
# TYPE fdmoe_gpu_xid_last_timestamp_seconds gauge
fdmoe_gpu_xid_last_timestamp_seconds{device="cuda:0"} 1.7640000005e+09
# HELP fdmoe_gpu_info 1; `source` is `recorded` where no GPU is read.
# TYPE fdmoe_gpu_info gauge
fdmoe_gpu_info{device="cuda:0",name="NVIDIA H200",source="nvml",uuid="GPU-1"} 1.0
# HELP fdmoe_gpu_utilization_ratio Share of time in which any kernel ran.
# TYPE fdmoe_gpu_utilization_ratio gauge
fdmoe_gpu_utilization_ratio{device="cuda:0",uuid="GPU-1"} 1.0
# HELP fdmoe_gpu_sm_activity_ratio Share of SMs that had a warp.
# TYPE fdmoe_gpu_sm_activity_ratio gauge
fdmoe_gpu_sm_activity_ratio{device="cuda:0",uuid="GPU-1"} 0.97
# HELP fdmoe_gpu_sm_occupancy_ratio Resident warps against what the SMs can hold.
# TYPE fdmoe_gpu_sm_occupancy_ratio gauge
fdmoe_gpu_sm_occupancy_ratio{device="cuda:0",uuid="GPU-1"} 0.06
# HELP fdmoe_gpu_tensor_activity_ratio Share of time in which tensor cores worked.
# TYPE fdmoe_gpu_tensor_activity_ratio gauge
fdmoe_gpu_tensor_activity_ratio{device="cuda:0",uuid="GPU-1"} 0.0
# HELP fdmoe_gpu_dram_bandwidth_ratio Memory bandwidth against its peak.
# TYPE fdmoe_gpu_dram_bandwidth_ratio gauge
fdmoe_gpu_dram_bandwidth_ratio{device="cuda:0",uuid="GPU-1"} 0.77
# HELP fdmoe_gpu_memory_used_bytes GPU memory that is allocated.
# TYPE fdmoe_gpu_memory_used_bytes gauge
fdmoe_gpu_memory_used_bytes{device="cuda:0",uuid="GPU-1"} 3.221225472e+09
# HELP fdmoe_gpu_memory_free_bytes GPU memory that is free.
# TYPE fdmoe_gpu_memory_free_bytes gauge
fdmoe_gpu_memory_free_bytes{device="cuda:0",uuid="GPU-1"} 1.46890819584e+11
# HELP fdmoe_gpu_memory_total_bytes GPU memory in all, with what the driver keeps for itself.
# TYPE fdmoe_gpu_memory_total_bytes gauge
fdmoe_gpu_memory_total_bytes{device="cuda:0",uuid="GPU-1"} 1.50754820096e+11
# HELP fdmoe_gpu_power_watts Power that the GPU draws.
# TYPE fdmoe_gpu_power_watts gauge
fdmoe_gpu_power_watts{device="cuda:0",uuid="GPU-1"} 139.0
# HELP fdmoe_gpu_temperature_celsius Temperature of the GPU's core.
# TYPE fdmoe_gpu_temperature_celsius gauge
fdmoe_gpu_temperature_celsius{device="cuda:0",uuid="GPU-1"} 41.0
# HELP fdmoe_gpu_sm_clock_hertz Clock of the SMs.
# TYPE fdmoe_gpu_sm_clock_hertz gauge
fdmoe_gpu_sm_clock_hertz{device="cuda:0",uuid="GPU-1"} 1.98e+09
# HELP fdmoe_gpu_memory_clock_hertz Clock of the memory.
# TYPE fdmoe_gpu_memory_clock_hertz gauge
fdmoe_gpu_memory_clock_hertz{device="cuda:0",uuid="GPU-1"} 3.2e+09
# HELP fdmoe_gpu_remapped_rows_pending 1 if memory rows wait for a reset to be remapped.
# TYPE fdmoe_gpu_remapped_rows_pending gauge
fdmoe_gpu_remapped_rows_pending{device="cuda:0",uuid="GPU-1"} 1.0
# HELP fdmoe_gpu_row_remapping_failed 1 if a memory row could not be remapped.
# TYPE fdmoe_gpu_row_remapping_failed gauge
fdmoe_gpu_row_remapping_failed{device="cuda:0",uuid="GPU-1"} 0.0
# HELP fdmoe_gpu_retired_pages_pending 1 if memory pages wait for a reset to be retired.
# TYPE fdmoe_gpu_retired_pages_pending gauge
fdmoe_gpu_retired_pages_pending{device="cuda:0",uuid="GPU-1"} 0.0
# HELP fdmoe_gpu_energy_joules_total Energy since the driver was loaded.
# TYPE fdmoe_gpu_energy_joules_total counter
fdmoe_gpu_energy_joules_total{device="cuda:0",uuid="GPU-1"} 5000.5
# HELP fdmoe_gpu_pcie_bytes_per_second Traffic over PCIe, as the GPU sees it.
# TYPE fdmoe_gpu_pcie_bytes_per_second gauge
fdmoe_gpu_pcie_bytes_per_second{device="cuda:0",direction="received",uuid="GPU-1"} 1.0
fdmoe_gpu_pcie_bytes_per_second{device="cuda:0",direction="transmitted",uuid="GPU-1"} 2.0
# HELP fdmoe_gpu_nvlink_bytes_per_second Traffic over all NVLinks, as the GPU sees it.
# TYPE fdmoe_gpu_nvlink_bytes_per_second gauge
fdmoe_gpu_nvlink_bytes_per_second{device="cuda:0",direction="received",uuid="GPU-1"} 3.0
fdmoe_gpu_nvlink_bytes_per_second{device="cuda:0",direction="transmitted",uuid="GPU-1"} 4.0
# HELP fdmoe_gpu_remapped_rows Memory rows that were remapped, by the kind of error.
# TYPE fdmoe_gpu_remapped_rows gauge
fdmoe_gpu_remapped_rows{device="cuda:0",error="corrected",uuid="GPU-1"} 8.0
fdmoe_gpu_remapped_rows{device="cuda:0",error="uncorrected",uuid="GPU-1"} 9.0
# HELP fdmoe_gpu_nvlink_bytes_total Data over all NVLinks since the driver was loaded.
# TYPE fdmoe_gpu_nvlink_bytes_total counter
fdmoe_gpu_nvlink_bytes_total{device="cuda:0",direction="received",uuid="GPU-1"} 5.0
fdmoe_gpu_nvlink_bytes_total{device="cuda:0",direction="transmitted",uuid="GPU-1"} 6.0
# HELP fdmoe_gpu_ecc_errors_total ECC errors since the driver was loaded.
# TYPE fdmoe_gpu_ecc_errors_total counter
fdmoe_gpu_ecc_errors_total{device="cuda:0",error="corrected",uuid="GPU-1"} 7.0
fdmoe_gpu_ecc_errors_total{device="cuda:0",error="uncorrected",uuid="GPU-1"} 0.0
# HELP fdmoe_gpu_compute_processes Processes with a context on the GPU.
# TYPE fdmoe_gpu_compute_processes gauge
fdmoe_gpu_compute_processes{device="cuda:0",uuid="GPU-1"} 1.0
# HELP fdmoe_gpu_throttled 1 for each reason that holds the clocks down.
# TYPE fdmoe_gpu_throttled gauge
fdmoe_gpu_throttled{device="cuda:0",reason="gpu_idle",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="applications_clocks",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="sw_power_cap",uuid="GPU-1"} 1.0
fdmoe_gpu_throttled{device="cuda:0",reason="hw_slowdown",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="sync_boost",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="sw_thermal",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="hw_thermal",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="hw_power_brake",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="display_clock",uuid="GPU-1"} 0.0
fdmoe_gpu_throttled{device="cuda:0",reason="other",uuid="GPU-1"} 0.0
# HELP fdmoe_gpu_recovery_action 1 for what the driver asks to be done.
# TYPE fdmoe_gpu_recovery_action gauge
fdmoe_gpu_recovery_action{action="none",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="reset_gpu",device="cuda:0",uuid="GPU-1"} 1.0
fdmoe_gpu_recovery_action{action="reboot_node",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="drain_p2p",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="drain_and_reset",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="recover_imex_domain",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="reset_bus",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="reboot_system",device="cuda:0",uuid="GPU-1"} 0.0
fdmoe_gpu_recovery_action{action="unknown",device="cuda:0",uuid="GPU-1"} 0.0
"""


def test_the_whole_exposition() -> None:
    assert text(view(FULL, xids={"13": 2, "other": 0}, last_xid_at=1764000000.5)) == WHOLE


def test_a_gpu_that_says_nothing_has_no_figures() -> None:
    assert samples(view(BARE)) == [
        'fdmoe_gpu_collector_success{device="cuda:0"} 1.0',
        'fdmoe_gpu_xids_watched{device="cuda:0"} 1.0',
        'fdmoe_gpu_info{device="cuda:0",name="NVIDIA H200",source="nvml",uuid="GPU-1"} 1.0',
    ]


def test_a_device_that_is_not_read_keeps_its_xids_only() -> None:
    assert samples(view(xids={"79": 1}, last_xid_at=12.0), view(BARE, device="cuda:1", source="recorded")) == [
        'fdmoe_gpu_collector_success{device="cuda:0"} 0.0',
        'fdmoe_gpu_collector_success{device="cuda:1"} 1.0',
        'fdmoe_gpu_xids_watched{device="cuda:1"} 1.0',
        'fdmoe_gpu_xid_total{device="cuda:0",xid="79"} 1.0',
        'fdmoe_gpu_xid_last_timestamp_seconds{device="cuda:0"} 12.0',
        'fdmoe_gpu_info{device="cuda:1",name="NVIDIA H200",source="recorded",uuid="GPU-1"} 1.0',
    ]


def test_no_devices_no_families() -> None:
    assert text() == ""


def test_mig_instances_are_told_apart() -> None:
    first, second = (GpuFigures(uuid=f"MIG-{k}", name="X", memory_used_bytes=k) for k in (1, 2))
    assert [line for line in samples(view(first, second)) if "memory" in line] == [
        'fdmoe_gpu_memory_used_bytes{device="cuda:0",uuid="MIG-1"} 1.0',
        'fdmoe_gpu_memory_used_bytes{device="cuda:0",uuid="MIG-2"} 2.0',
    ]


def test_energy_that_begins_again_after_a_driver_reload_is_a_counters_reset() -> None:
    lines = [
        next(line for line in samples(view(GpuFigures(uuid="U", name="X", energy_joules=joules))) if "energy" in line)
        for joules in (5000.0, 1.5)
    ]
    assert lines == [f'fdmoe_gpu_energy_joules_total{{device="cuda:0",uuid="U"}} {joules}' for joules in (5000.0, 1.5)]


_NUMBERS = st.none() | st.floats(0, 1e15) | st.just(math.inf)
_COUNTS = st.none() | st.integers(0, 2**64 - 1)
_KINDS: dict[Any, st.SearchStrategy[Any]] = {
    float | None: _NUMBERS,
    int | None: _COUNTS,
    bool | None: st.none() | st.booleans(),
    RecoveryAction | None: st.none() | st.sampled_from(get_args(RecoveryAction)),
    tuple[ThrottleReason, ...] | None: st.none()
    | st.lists(st.sampled_from(get_args(ThrottleReason)), unique=True).map(tuple),
    tuple[GpuProcess, ...] | None: st.none() | st.lists(st.builds(GpuProcess)).map(tuple),
}
_FIGURES = {
    name: _KINDS[kind]
    for name, kind in get_type_hints(GpuFigures).items()
    if name not in ("uuid", "name", "fault", "throttle_mask")
}


@given(st.fixed_dictionaries(_FIGURES))
def test_each_figure_that_is_there_is_exported_and_no_other(figures: dict[str, Any]) -> None:
    found = samples(view(GpuFigures(uuid="U", name="X", **figures)))
    # one series a figure, but one for each value of a closed set
    series = {"throttle_reasons": len(get_args(ThrottleReason)), "recovery_action": len(get_args(RecoveryAction))}
    expected = sum(series.get(name, 1) for name, value in figures.items() if value is not None)
    assert len(found) == len(set(found)) == 3 + expected


def test_xid_labels_fit_one_page() -> None:
    assert len(LABELS) == len(set(LABELS)) == 46


# ---- the memory of a killed worker


def reading(
    *processes: tuple[GpuProcess, ...] | None, begun_ns: int = 10, used: int | None = None
) -> GpuReading:  # fmt: skip
    gpus = tuple(
        GpuFigures(uuid=str(place), name="X", processes=found, memory_used_bytes=used)
        for place, found in enumerate(processes)
    )
    return GpuReading("0", "nvml", begun_ns, True, gpus)


def keeper_of(events: EventLog) -> ProbeKeeper:
    plan = ProbePlan({"cuda:0": "0"}, Path("/nowhere"), {})
    keeper = ProbeKeeper(plan, WatchdogSettings(), RecoverySettings(), events, 0.0)
    keeper.child = cast(Any, SimpleNamespace())
    return keeper


def test_that_nvml_names_none_of_our_processes_and_no_figure_is_told_once() -> None:
    events = EventLog()
    keeper = keeper_of(events)
    keeper.heard(reading((GpuProcess(2, 5),), begun_ns=10))
    assert keeper.memory_is_back("cuda:0", 3, 5)
    assert keeper.memory_is_back("cuda:0", 4, 5)
    assert [(event["event"], event.get("pid")) for event in events.last][1:] == [("memory_unknown", 3)]


def test_of_a_process_that_nvml_names_its_memory_is_what_nvml_says() -> None:
    events = EventLog()
    keeper = keeper_of(events)
    keeper.heard(reading((GpuProcess(1, 5),), begun_ns=4, used=GIB))
    assert not keeper.memory_is_back("cuda:0", 1, 5), "the next reading is waited for"
    keeper.heard(reading((GpuProcess(1, 5),), begun_ns=10, used=0))
    assert not keeper.memory_is_back("cuda:0", 1, 5), "it is still there"
    keeper.heard(reading((GpuProcess(2, 5),), begun_ns=20, used=GIB))
    assert keeper.memory_is_back("cuda:0", 1, 5)
    assert keeper.memory_is_back("cuda:0", 3, 5), "where ours are named, one that never was had none"
    assert [event["event"] for event in events.last] == ["gpu_readable"]


def test_one_of_ours_that_nvml_names_is_enough_to_know_that_one_that_it_never_named_had_nothing() -> None:
    events = EventLog()
    keeper = keeper_of(events)
    now = time.monotonic_ns()
    keeper.heard(reading((GpuProcess(7, 5),), begun_ns=now - SECOND, used=GIB))
    keeper.heard(reading((GpuProcess(7, 5),), begun_ns=now + 1, used=GIB))
    assert not keeper.memory_is_back("cuda:0", 1, now, (8,))
    assert keeper.memory_is_back("cuda:0", 1, now, (8, 7))
    assert [event["event"] for event in events.last] == ["gpu_readable"]


def test_of_processes_without_names_the_device_must_have_more_room_than_before() -> None:
    events = EventLog()
    keeper = keeper_of(events)
    now = time.monotonic_ns()
    keeper.heard(reading((), begun_ns=now - 10 * SECOND, used=9 * GIB))
    keeper.heard(reading((), begun_ns=now - 2 * SECOND, used=3 * GIB))
    # by then it had given back what it could before anybody reaped it
    keeper.heard(reading((), begun_ns=now - SECOND, used=2 * GIB))
    keeper.heard(reading((), begun_ns=now + 1, used=3 * GIB - 1000))
    assert not keeper.memory_is_back("cuda:0", 1, now), "what was taken long ago says nothing of it"
    keeper.heard(reading((), begun_ns=now + 2, used=2 * GIB))
    assert keeper.memory_is_back("cuda:0", 1, now)
    assert [event["event"] for event in events.last] == ["gpu_readable"]


def test_what_a_neighbour_takes_meanwhile_is_no_broken_device() -> None:
    events, settings = EventLog(), RecoverySettings()
    keeper = keeper_of(events)
    now = time.monotonic_ns()
    reaped = now - int(settings.reclaim_deadline_s / 2 * SECOND)
    keeper.heard(reading((), begun_ns=reaped - 1, used=3 * GIB))
    keeper.heard(reading((), begun_ns=now, used=3 * GIB))
    assert keeper.memory_is_back("cuda:0", 1, reaped), "half of the time in which a device would be given up"
    assert [event["event"] for event in events.last][1:] == ["memory_unknown"]


@pytest.mark.parametrize(
    ("last", "holds"),
    [
        (None, None),
        (reading((), begun_ns=5), None),
        (reading(None), None),
        (reading((), None), None),
        (reading(()), False),
        (reading((GpuProcess(2, 5),)), False),
        (reading((), (GpuProcess(1, None),)), True),
    ],
)
def test_whether_a_process_still_holds_memory(last: GpuReading | None, holds: bool | None) -> None:
    assert holds_memory(last, 1, after_ns=5) is holds
