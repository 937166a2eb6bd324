"""What the kernel does by its own count, what the watchdog sees of it, and what it has done."""

from __future__ import annotations

from fdmoe_dashboards.alerts import HEARTBEAT_STALE_S, LATE_PER_S, LATE_TURNS
from fdmoe_dashboards.frame import Board, board
from fdmoe_dashboards.panels import (
    Panel,
    events,
    heat_map,
    limits,
    lines,
    name,
    right_axis,
    runbooks,
    timeline,
    words,
)
from fdmoe_dashboards.queries import (
    buckets_of,
    gauge,
    increase_of,
    now,
    quantile,
    query,
    rate,
    rate_of,
    series,
)

_WORKER = ("device", "worker")
_BUSY = f"max by (instance, device) ({series('fdmoe_gpu_utilization_ratio')})"
_ITEMS = f"sum by (instance, device) ({rate('fdmoe_device_work_items_total')})"
_WHY = """\
GPU utilisation says that some kernel runs, not that it gets anywhere. Measured on an H200:

| | utilisation | SM activity | tensor | DRAM | power |
|---|---|---|---|---|---|
| serves small batches | 27 % | 22 % | 2 % | 19 % | 250 W |
| a launch stalled | 100 % | 62 % | 0 % | 0 % | 130 W |

The work items are the kernel's own count. Busy and no items: on the baseline path (which counts none), or stalled.
"""


def dashboard() -> Board:
    return board(
        "fdmoe-kernel",
        "fdmoe kernel and watchdog",
        "What the kernel does by its own count, what the watchdog sees of it, and what it has done about it.",
        (
            ("Beats", _beats()),
            ("Progress against utilisation", _progress()),
            ("Detection and recovery", _recovery()),
            ("Comparisons of the paths", _shadow()),
            ("Layers", _layers()),
            ("The watchdog itself", _watchdog()),
        ),
    )


def _beats() -> list[Panel]:
    last = series("fdmoe_last_heartbeat_timestamp_seconds")
    return [
        runbooks(
            limits(
                lines(
                    "Heartbeat age",
                    "Time since the device last wrote a beat while work is outstanding; 0 while none is.",
                    "s",
                    gauge("fdmoe_heartbeat_age_seconds", *_WORKER),
                ),
                HEARTBEAT_STALE_S,
            ),
            "heartbeat-stale",
        ),
        lines(
            "Time since the last beat",
            "Outstanding work or not: idle workers have long ones, and who has never beaten has none.",
            "s",
            query(f"time() - max by (instance, device, worker) ({last} > 0)", "{{instance}} {{device}} {{worker}}"),
        ),
        lines(
            "Stalled CTAs",
            "CTAs of a launch that is being aborted which have not left it.",
            "none",
            gauge("fdmoe_stalled_ctas", *_WORKER),
        ),
        runbooks(
            timeline(
                "Worker states",
                "One row for every state a worker has been in, filled while it was in it.",
                query(
                    f"max by (instance, device, worker, state) ({series('fdmoe_worker_state')}) == 1",
                    "{{instance}} {{device}} {{worker}}: {{state}}",
                ),
                {"1": ("in this state", "blue")},
            ),
            "no-standby",
        ),
        runbooks(
            lines(
                "Starts of workers",
                "A worker's generation: how often it has been started.",
                "none",
                gauge("fdmoe_worker_generation", *_WORKER),
                width=6,
            ),
            "restart-loop",
        ),
        lines(
            "Restarts left",
            "What is left of recovery.restart_budget; at 0 a worker that ends is not started again.",
            "none",
            gauge("fdmoe_restart_budget_remaining", "device"),
            width=6,
        ),
    ]


def _progress() -> list[Panel]:
    return [
        words("Why utilisation is not progress", _WHY, width=6, height=9),
        runbooks(
            right_axis(
                lines(
                    "Utilisation and progress",
                    "The GPU's utilisation as NVML tells it, and the work items that the device itself has counted. "
                    "The lines part where a kernel is busy and gets nowhere.",
                    "percentunit",
                    query(_BUSY, "{{instance}} {{device}} utilisation"),
                    query(_ITEMS, "{{instance}} {{device}} work items/s"),
                    width=9,
                    height=9,
                ),
                "B",
                "short",
            ),
            "busy-without-progress",
        ),
        runbooks(
            lines(
                "Divergence",
                "Utilisation over work items per second: near 0 where work gets done, 1 where the GPU is busy for "
                "nothing that is counted.",
                "short",
                query(f"{_BUSY} / clamp_min({_ITEMS}, 1)", "{{instance}} {{device}}"),
                width=9,
                height=9,
                logarithmic=True,
            ),
            "busy-without-progress",
        ),
        lines(
            "Work items by phase",
            "Work items that kernels finished per second, by their own count.",
            "short",
            rate_of("fdmoe_device_work_items_total", "phase"),
            width=12,
        ),
        lines(
            "What the SMs do",
            "Full SMs with idle tensor cores and idle memory: a kernel that spins.",
            "percentunit",
            *(
                query(
                    f"max by (instance, device) ({series(f'fdmoe_gpu_{figure}_ratio')})",
                    f"{{{{instance}}}} {{{{device}}}} {what}",
                )
                for figure, what in (
                    ("sm_activity", "SM activity"),
                    ("tensor_activity", "tensor"),
                    ("dram_bandwidth", "DRAM"),
                )
            ),
            width=12,
        ),
    ]


def _recovery() -> list[Panel]:
    return [
        events(
            "Stalls",
            "Stalls that the watchdog has detected, by cause.",
            increase_of("fdmoe_stalls_total", "cause"),
        ),
        heat_map(
            "Time to detection",
            "How long the device had been silent when a stall was detected.",
            "s",
            buckets_of("fdmoe_stall_detection_seconds", 'cause="stall"'),
            width=8,
        ),
        lines(
            "Recovery time by rung, last hour",
            "abort, replay: from the detection to the next answer. kill: from the signal to the reaping. restart: from "
            "a start to a warm worker. abort drill: what a worker's warm-up takes to end a launch that stalls. The "
            "99th percentile.",
            "s",
            quantile(0.99, "fdmoe_recovery_seconds", "rung", window="1h"),
            quantile(0.99, "fdmoe_abort_drill_seconds", window="1h", of="abort drill"),
        ),
        events(
            "Rungs taken",
            "How often each rung of the ladder did its work.",
            increase_of("fdmoe_recovery_seconds_count", "rung"),
            width=6,
        ),
        runbooks(
            events(
                "Rungs that failed",
                "restart: the budget is spent. give_up: a device was left out.",
                increase_of("fdmoe_recovery_failures_total", "rung"),
                width=6,
            ),
            "recovery-failed",
        ),
        events(
            "Aborts",
            "Kernels that were told to end, and whether they did in time.",
            increase_of("fdmoe_aborts_total", "result"),
            width=4,
        ),
        runbooks(
            events(
                "Worker restarts",
                "Workers started again after their process was ended, by reason.",
                increase_of("fdmoe_worker_restarts_total", "reason"),
                width=4,
            ),
            "restart-loop",
        ),
        events(
            "Ends of other processes",
            "Weights holder, gateway, probe and annotator, which are started again when they end.",
            increase_of("fdmoe_process_ends_total", "process"),
            width=4,
        ),
        runbooks(
            events(
                "Path switches",
                "Changes of the serving path, with their reason.",
                increase_of(
                    "fdmoe_path_switches_total", "from", "to", "reason", legend="{{from}} to {{to}}: {{reason}}"
                ),
                width=12,
            ),
            "on-baseline",
        ),
        events(
            "Flight records",
            "Records that were saved of stalls, hangs and ends: `fdmoe flight list`.",
            increase_of("fdmoe_flight_records_total", legend="records"),
            width=12,
        ),
    ]


def _shadow() -> list[Panel]:
    return [
        runbooks(
            events(
                "Comparisons",
                "Batches that ran on both paths, and whether the outputs were the same.",
                increase_of("fdmoe_shadow_checks_total", "result"),
                width=12,
            ),
            "shadow-mismatch",
        ),
        runbooks(
            heat_map(
                "Relative error",
                "The fused path's error against the baseline; what is above the last bound was not finite.",
                "none",
                buckets_of("fdmoe_shadow_relative_error"),
            ),
            "shadow-mismatch",
        ),
    ]


def _layers() -> list[Panel]:
    histogram = "fdmoe_layer_duration_seconds"
    labels = ("path", "bucket")
    titles = {0.5: "Layer time, median", 0.99: "Layer time, 99th percentile"}
    return [
        *(
            lines(
                title,
                "By path and token bucket (its upper bound).",
                "s",
                quantile(share, histogram, *labels),
                logarithmic=True,
            )
            for share, title in titles.items()
        ),
        lines(
            "Launches by path and bucket",
            "Layers computed per second, by path and token bucket.",
            "ops",
            rate_of(f"{histogram}_count", *labels),
        ),
    ]


def _watchdog() -> list[Panel]:
    return [
        runbooks(
            lines(
                "Lag of the watchdog's loop",
                "How much later than planned its turns came.",
                "s",
                quantile(0.5, "fdmoe_watchdog_loop_lag_seconds", "instance"),
                quantile(0.99, "fdmoe_watchdog_loop_lag_seconds", "instance"),
                width=6,
            ),
            "watchdog-lagging",
        ),
        runbooks(
            limits(
                lines(
                    "Turns that came too late",
                    "Turns a second after which the watchdog judges nobody's silence, over 5 minutes.",
                    "none",
                    query(f"max by (instance) ({series(LATE_TURNS)})", "{{instance}}"),
                    width=6,
                ),
                LATE_PER_S,
            ),
            "watchdog-lagging",
        ),
        events(
            "Annotations for Grafana",
            "Failovers told in a Grafana: written, given up, or dropped because others were still waiting.",
            increase_of("fdmoe_grafana_annotations_total", "result"),
            width=6,
        ),
        name(
            "Version",
            "The version that runs.",
            now(f"max by (instance, version) ({series('fdmoe_build_info')})", "{{instance}} {{version}}"),
            width=6,
            height=7,
        ),
    ]
