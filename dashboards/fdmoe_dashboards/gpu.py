"""What NVML says of the GPUs. A figure that a GPU does not have is absent, and its panel empty."""

from __future__ import annotations

from grafana_foundation_sdk.builders.prometheus import Dataquery

from fdmoe_dashboards.frame import Board, board
from fdmoe_dashboards.panels import (
    OFF_ON,
    ON_OFF,
    Panel,
    States,
    events,
    lines,
    number,
    rows,
    runbooks,
    timeline,
)
from fdmoe_dashboards.queries import gauge, increase_of, now, query, rate, rate_of, series, table

_GPU = ("device", "uuid")
_LEGEND = "{{instance}} {{device}} {{uuid}}"
_HOLDS: States = {"1": ("holds", "orange")}


def dashboard() -> Board:
    return board(
        "fdmoe-gpu",
        "fdmoe GPU",
        "What NVML says of the GPUs. Utilisation is no progress: see the kernel's dashboard.",
        (
            ("What is read", _read()),
            ("Use", _use()),
            ("Memory", _memory()),
            ("Power and clocks", _power()),
            ("Links", _links()),
            ("Faults", _faults()),
        ),
    )


def _read() -> list[Panel]:
    return [
        runbooks(
            timeline(
                "Readable",
                "Whether the NVML probe reads the device. Serving does not depend on it.",
                gauge("fdmoe_gpu_collector_success", "device"),
                ON_OFF,
                width=8,
                height=6,
            ),
            "collector-stale",
        ),
        timeline(
            "Xids watched",
            "Whether the driver tells of Xids.",
            gauge("fdmoe_gpu_xids_watched", "device"),
            ON_OFF,
            width=6,
            height=6,
        ),
        rows(
            "GPUs",
            "What is read. The source `recorded` is a file that is replayed where there is no GPU.",
            table(f"max by (instance, device, name, source, uuid) ({series('fdmoe_gpu_info')})"),
            width=10,
        ),
    ]


def _ratio(title: str, description: str, figure: str) -> Panel:
    return lines(title, description, "percentunit", gauge(f"fdmoe_gpu_{figure}_ratio", *_GPU))


def _use() -> list[Panel]:
    return [
        _ratio("Utilisation", "Share of time in which any kernel ran; a kernel that spins reads 100 %.", "utilization"),
        _ratio("SM activity", "Share of SMs that had a warp; a kernel that spins on all reads 100 %.", "sm_activity"),
        _ratio("SM occupancy", "Resident warps against what the SMs can hold.", "sm_occupancy"),
        _ratio("Tensor cores", "Share of time in which tensor cores worked.", "tensor_activity"),
        _ratio("DRAM", "Memory bandwidth against its peak.", "dram_bandwidth"),
        lines(
            "Processes",
            "Processes with a context on the GPU: two workers and the holder of the weights are ours.",
            "none",
            gauge("fdmoe_gpu_compute_processes", *_GPU),
        ),
    ]


def _memory() -> list[Panel]:
    return [
        lines(
            "Memory used",
            "Allocated, and all there is with what the driver keeps for itself.",
            "bytes",
            _named("fdmoe_gpu_memory_used_bytes", "used"),
            _named("fdmoe_gpu_memory_total_bytes", "total"),
            width=12,
        ),
        lines("Memory free", "What can be allocated.", "bytes", gauge("fdmoe_gpu_memory_free_bytes", *_GPU), width=12),
    ]


def _power() -> list[Panel]:
    energy = f"sum by (instance, device, uuid) ({rate('fdmoe_gpu_energy_joules_total')})"
    return [
        lines(
            "Power",
            "As the GPU reads it now; busy and at the power of an idle GPU is another face of a kernel that spins.",
            "watt",
            gauge("fdmoe_gpu_power_watts", *_GPU),
        ),
        lines("Power by energy", "The mean, from the GPU's counter of energy.", "watt", query(energy, _LEGEND)),
        lines("Temperature", "Of the GPU's core.", "celsius", gauge("fdmoe_gpu_temperature_celsius", *_GPU)),
        lines(
            "Clocks",
            "Of the SMs and of the memory.",
            "hertz",
            _named("fdmoe_gpu_sm_clock_hertz", "SM"),
            _named("fdmoe_gpu_memory_clock_hertz", "memory"),
            width=12,
        ),
        timeline(
            "Throttled",
            "What holds the clocks down, while it does. gpu_idle is no fault.",
            query(
                f"max by (instance, device, uuid, reason) ({series('fdmoe_gpu_throttled')}) == 1",
                f"{_LEGEND} {{{{reason}}}}",
            ),
            _HOLDS,
        ),
    ]


def _links() -> list[Panel]:
    return [
        lines(
            "PCIe",
            "Traffic as the GPU sees it.",
            "Bps",
            gauge("fdmoe_gpu_pcie_bytes_per_second", *_GPU, "direction"),
        ),
        lines(
            "NVLink",
            "Traffic over all links, as the GPU sees it.",
            "Bps",
            gauge("fdmoe_gpu_nvlink_bytes_per_second", *_GPU, "direction"),
        ),
        lines(
            "NVLink by counter",
            "Data over all links, from their counters.",
            "Bps",
            rate_of("fdmoe_gpu_nvlink_bytes_total", "instance", *_GPU, "direction"),
        ),
    ]


def _faults() -> list[Panel]:
    last = f"max by (instance, device) ({series('fdmoe_gpu_xid_last_timestamp_seconds')}) * 1000"
    return [
        runbooks(
            events(
                "Xids",
                "Xids that the driver reported, by number.",
                increase_of("fdmoe_gpu_xid_total", "device", "xid", legend="{{device}} Xid {{xid}}"),
            ),
            "xid-critical",
        ),
        number(
            "Last Xid",
            "When the last Xid came, of whatever number.",
            "dateTimeFromNow",
            now(last, "{{instance}} {{device}}"),
            width=8,
            height=7,
        ),
        runbooks(
            timeline(
                "Recovery action",
                "What the driver asks to be done, while it does.",
                query(
                    f"max by (instance, device, uuid, action) ({series('fdmoe_gpu_recovery_action')}) == 1",
                    f"{_LEGEND} {{{{action}}}}",
                ),
                {"1": ("asked for", "blue")},
                width=8,
            ),
            "recovery-action-needed",
        ),
        events(
            "ECC errors",
            "Errors of the memory, by whether they could be corrected.",
            increase_of("fdmoe_gpu_ecc_errors_total", "device", "error"),
        ),
        lines(
            "Remapped rows",
            "Memory rows that were remapped, by the kind of error.",
            "none",
            gauge("fdmoe_gpu_remapped_rows", *_GPU, "error"),
        ),
        timeline(
            "Memory waits for a reset",
            "Rows to be remapped, pages to be retired, rows that could not be remapped.",
            query(
                " or ".join(
                    f'label_replace(max by (instance, device, uuid) ({series(family)}), "what", "{what}", "", "")'
                    for family, what in (
                        ("fdmoe_gpu_remapped_rows_pending", "rows"),
                        ("fdmoe_gpu_retired_pages_pending", "pages"),
                        ("fdmoe_gpu_row_remapping_failed", "remapping failed"),
                    )
                ),
                f"{_LEGEND} {{{{what}}}}",
            ),
            OFF_ON,
            width=8,
        ),
    ]


def _named(family: str, what: str) -> Dataquery:
    return query(f"max by (instance, device, uuid) ({series(family)})", f"{_LEGEND} {what}")
