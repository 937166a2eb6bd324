"""The watchdog's metrics: every family it exports is a literal here (DESIGN: metrics)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, Info
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from fdmoe_watchdog.count_metrics import CountCollector
from fdmoe_watchdog.gpu_metrics import GpuCollector
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.messages import Path
from fdmoe_watchdog.policy import Life
from fdmoe_watchdog.status import Event, TreeView

PATHS: tuple[str, ...] = get_args(Path)
# every change of path that the policy knows, and why
SWITCHES = (
    *(
        (path, "baseline", reason)
        for path in ("fused", "shadow")
        for reason in ("stall", "frozen", "exit", "page", "unreachable", "budget")
    ),
    ("shadow", "baseline", "mismatch"),
    ("fused", "baseline", "mismatch"),
    ("shadow", "baseline", "slow"),
    ("fused", "baseline", "slow"),
    ("fused", "baseline", "unproven"),
    ("shadow", "baseline", "unproven"),
    ("baseline", "shadow", "cooled_down"),
    ("shadow", "fused", "proven"),
)
PHASES = ("route", "up", "down", "combine")
# the processes that are no workers, by the event of their end
_ENDS = {
    "weights_gone": "weights",
    "gateway_exit": "gateway",
    "probe_exit": "probe",
    "probe_silent": "probe",
    "annotator_exit": "annotator",
}
# from one poll of the watchdog to a restart
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DRILLS_S = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)
_ERRORS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
_LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Metrics:
    """Counters and histograms are moved by the watchdog's loop; gauges are read from its last view at each scrape."""

    def __init__(self, view: Callable[[], TreeView], ledger: Ledger, version: str, devices: Iterable[str]) -> None:
        self.registry = registry = CollectorRegistry()
        self.path_switches = Counter(
            "fdmoe_path_switches", "Changes of the path that serves.", ["from", "to", "reason"], registry=registry
        )
        self.worker_restarts = Counter(
            "fdmoe_worker_restarts", "Worker processes started after the first.", ["reason"], registry=registry
        )
        self._process_ends = Counter(
            "fdmoe_process_ends",
            "Ends of processes that are no workers: by themselves, by the watchdog, and those that were asked for.",
            ["process"],
            registry=registry,
        )
        self.device_work_items = Counter(
            "fdmoe_device_work_items",
            "Work items that kernels finished, by their own count.",
            ["device", "phase"],
            registry=registry,
        )
        self.stalls = Counter("fdmoe_stalls", "Stalls detected.", ["cause"], registry=registry)
        self.stall_detection = Histogram(
            "fdmoe_stall_detection_seconds",
            "Silence when a stall was detected: of the device, or of a worker that was ready and is frozen.",
            ["cause"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.recovery = Histogram(
            "fdmoe_recovery_seconds",
            "abort, replay: from the detection of a stall to the next answered batch, by the rung that brought it. "
            "kill: from the signal to the reaping, also of a process that ends by itself. restart: from a start to a "
            "warm worker.",
            ["rung"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.aborts = Counter(
            "fdmoe_aborts", "Kernels told to end, and whether they did in time.", ["result"], registry=registry
        )
        self.recovery_failures = Counter(
            "fdmoe_recovery_failures",
            "Ends of the ladder. restart: a worker, a weights holder or the gateway is not started again, because its "
            "budget is gone. give_up: a device was left out, or the tree ended.",
            ["rung"],
            registry=registry,
        )
        self.abort_drill = Histogram(
            "fdmoe_abort_drill_seconds",
            "From the abort word to the end of a launch that stalls, the longest of a worker's warm-up.",
            buckets=_DRILLS_S,
            registry=registry,
        )
        self.flight_records = Counter(
            "fdmoe_flight_records", "Flight records that are safe on disk.", registry=registry
        )
        self.shadow_error = Histogram(
            "fdmoe_shadow_relative_error",
            "Relative error of the fused path against the baseline in shadow runs.",
            buckets=_ERRORS,
            registry=registry,
        )
        self.shadow_checks = Counter(
            "fdmoe_shadow_checks", "Comparisons of the fused path with the baseline.", ["result"], registry=registry
        )
        self.loop_lag = Histogram(
            "fdmoe_watchdog_loop_lag_seconds",
            "How much later than planned a turn of the watchdog's loop came.",
            buckets=_LAG_SECONDS,
            registry=registry,
        )
        self.annotations = Counter(
            "fdmoe_grafana_annotations",
            "Annotations for Grafana: written, given up after being tried, or dropped without.",
            ["result"],
            registry=registry,
        )
        Info("fdmoe_build", "Version of the service.", registry=registry).info({"version": version})
        # a series that is born at 1 hides its first event from increase(): all label sets are there from the start
        for device in devices:
            for phase in PHASES:
                self.device_work_items.labels(device, phase)
        for cause in ("stall", "frozen", "startup"):
            self.stalls.labels(cause)
        for cause in ("stall", "frozen"):
            self.stall_detection.labels(cause)
        for reason in ("stall", "frozen", "exit", "page", "unreachable", "startup", "weights"):
            self.worker_restarts.labels(reason)
        for process in _ENDS.values():
            self._process_ends.labels(process)
        for hop in SWITCHES:
            self.path_switches.labels(*hop)
        for result in ("ended", "timed_out"):
            self.aborts.labels(result)
        for result in ("ok", "mismatch"):
            self.shadow_checks.labels(result)
        for result in ("sent", "failed", "dropped"):
            self.annotations.labels(result)
        for rung in ("abort", "replay", "kill", "restart"):
            self.recovery.labels(rung)
        for rung in ("restart", "give_up"):
            self.recovery_failures.labels(rung)
        registry.register(_Gauges(view))
        registry.register(GpuCollector(lambda: view().gpus))
        registry.register(CountCollector(ledger))

    def happened(self, event: Event) -> None:
        """Follows the event log."""
        if (process := _ENDS.get(str(event["event"]))) is not None:
            self._process_ends.labels(process).inc()


class _Gauges(Collector):
    """What the tree is like now."""

    def __init__(self, view: Callable[[], TreeView]) -> None:
        self._view = view

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return ()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        view = self._view()
        family = GaugeMetricFamily("fdmoe_path_active", "1 for the path that serves.", labels=["device", "path"])
        for device in view.devices:
            for path in PATHS:
                family.add_metric([device.name, path], float(device.active is not None and path == device.path))
        yield family
        budgets = GaugeMetricFamily(
            "fdmoe_restart_budget_remaining", "Restarts that the period still allows.", labels=["device"]
        )
        for device in view.devices:
            budgets.add_metric([device.name], device.restarts_left)
        yield budgets
        worker_labels = ["device", "worker"]
        states = GaugeMetricFamily("fdmoe_worker_state", "1 for the worker's state.", labels=[*worker_labels, "state"])
        generations = GaugeMetricFamily("fdmoe_worker_generation", "Starts of this worker.", labels=worker_labels)
        ages = GaugeMetricFamily(
            "fdmoe_heartbeat_age_seconds",
            "Silence of the device while a launch is outstanding, else 0.",
            labels=worker_labels,
        )
        last = GaugeMetricFamily(
            "fdmoe_last_heartbeat_timestamp_seconds", "Unix time of the last change of a beat.", labels=worker_labels
        )
        stalled = GaugeMetricFamily(
            "fdmoe_stalled_ctas", "CTAs of a stalled launch that have not left it.", labels=worker_labels
        )
        for worker in view.workers:
            labels = [worker.device, worker.name]
            for life in Life:
                states.add_metric([*labels, life.value], float(worker.state == life.value))
            generations.add_metric(labels, worker.generation)
            ages.add_metric(labels, worker.heartbeat_age_s)
            last.add_metric(labels, worker.last_heartbeat_at)
            stalled.add_metric(labels, worker.stalled_ctas)
        yield from (states, generations, ages, last, stalled)
