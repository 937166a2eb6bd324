"""Writes the page of all metrics: `python dashboards/metrics_page.py > dashboards/metrics.md`.

Names, types, help texts and labels are those of the two registries, filled as a tree with a GPU fills them. What a
label can hold is written here.
"""

from __future__ import annotations

import tempfile
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from fdmoe_ops.gateway.metrics import Metrics as GatewayMetrics
from fdmoe_watchdog.count_metrics import CountLines
from fdmoe_watchdog.counts import PATHS, CountPage
from fdmoe_watchdog.gpu_view import GpuView
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.messages import GpuFigures, RecoveryAction
from fdmoe_watchdog.metrics import Metrics as WatchdogMetrics
from fdmoe_watchdog.status import DeviceView, GatewayView, HolderView, TreeView, WorkerView
from fdmoe_watchdog.xid import LABELS as XID_LABELS

ACTIONS: tuple[str, ...] = get_args(RecoveryAction)
# how many values a label can have, and which; D devices, L layers, E routed experts
LABELS = {
    "action": (str(len(ACTIONS)), "what NVML asks for: " + ", ".join(f"`{action}`" for action in ACTIONS)),
    "bucket": ("B", "the power of two at or above the batch's tokens; B of them up to `worker.max_batch_tokens`"),
    "cause": (
        "4",
        "`stall`: a launch without beats; `frozen`: a worker that does nothing; `startup`: one too slow to start",
    ),
    "code": ("12", "HTTP status; 499 where the client went away first"),
    "device": ("D", "`cpu`, `cuda:0`, ..."),
    "direction": ("2", "`received`, `transmitted`, as the GPU sees it"),
    "error": ("2", "`corrected`, `uncorrected`"),
    "expert": ("E", "index of a routed expert"),
    "from": ("3", "the path that served until then"),
    "layer": ("L", "a served layer, such as `m/layers.3`; `` where a request named none"),
    "name": ("1", "the GPU's product name"),
    "path": ("3", "`fused`, `shadow`, `baseline`; `none` where nothing was computed"),
    "peer": ("1", "`local`: the GPU's own memory"),
    "phase": ("4", "`route`, `up`, `down`, `combine`"),
    "process": ("4", "`weights`, `gateway`, `probe`, `annotator`; of all devices together"),
    "reason": ("12", "why: of path switches and restarts the watchdog's, of refusals the gateway's, of clocks NVML's"),
    "result": (
        "3",
        "`ended`, `timed_out` of aborts; `ok`, `mismatch` of checks; `sent`, `failed`, `dropped` of annotations",
    ),
    "rung": ("4", "`abort`, `replay`, `kill`, `restart`; of failures `restart`, `give_up`"),
    "source": ("1", "`nvml`, or `recorded` where no GPU is read"),
    "state": ("6", "`absent`, `backoff`, `starting`, `ready`, `aborting`, `dying`"),
    "to": ("3", "the path that serves from then on"),
    "uuid": ("1", "of the GPU, or of each of its MIG instances"),
    "version": ("1", "of the service"),
    "worker": ("2", "`a` and `b`; with several devices `a0`, `b0`, `a1`, ..."),
    "xid": (str(len(XID_LABELS)), "a known Xid, or `other`"),
}
# of which a family has more with more devices, layers and so on; without them all its series are there from the start
OPEN = {"device", "layer", "expert", "path", "bucket", "code", "uuid", "version"}
SERIES = {
    "fdmoe_layer_duration_seconds": "2 × B, of those that have run",
    "fdmoe_request_duration_seconds": "of each layer, path and code that came together",
    "fdmoe_request_tokens_total": "L × 3",
}


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    labels: tuple[str, ...]
    text: str
    label_sets: int


def rows(registry: CollectorRegistry, more: str = "") -> Iterator[Row]:
    """A row for each family of a registry, in the order of their names, and of `more` in the text format."""
    families = [*registry.collect(), *text_string_to_metric_families(more)]
    labels = _label_names(registry)
    for family in sorted(families, key=lambda family: family.name):
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        sets = {tuple(value for label, value in sample.labels.items() if label != "le") for sample in family.samples}
        yield Row(
            name, family.type, labels.get(family.name) or _sampled_labels(family), family.documentation, len(sets)
        )  # fmt: skip


def _label_names(registry: CollectorRegistry) -> dict[str, tuple[str, ...]]:
    """Of the families that have no series until something happens."""
    return {
        collector._name: collector._labelnames
        for collector in registry._collector_to_names
        if hasattr(collector, "_labelnames")
    }


def _sampled_labels(family: Metric) -> tuple[str, ...]:
    names = {name: None for sample in family.samples for name in sample.labels if name != "le"}
    return tuple(getattr(family, "_labelnames", ())) or tuple(names)


def watchdog() -> list[Row]:
    view = TreeView(
        version="", path="fused", chaos=False, draining=False, uptime_s=0.0,
        devices=(DeviceView("cuda:0", "fused", "a", None, 10, HolderView("weights", 1, 1, "ready", 1)),),
        workers=(
            WorkerView(
                name="a", device="cuda:0", generation=1, pid=1, state="ready", path="fused", stage="serving",
                outstanding=False, heartbeat_age_s=0.0, last_heartbeat_at=0.0, stalled_ctas=0, slots=1, batches={},
                weights=1, gpu_memory_bytes=None,
            ),
        ),
        gateway=GatewayView("", 1),
        gpus=(GpuView("cuda:0", True, "", "nvml", True, dict.fromkeys(XID_LABELS, 0), 0.0, (_figures(),)),),
        events=(), last_flight=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        ledger = Ledger(print)
        path = Path(directory) / "counts"
        page = CountPage(path, generation=1, layers=1, experts=1)
        for serving in PATHS:
            page.ran(serving, 1, 10_000)
        ledger.came("a", path, ("m/layers.0",), 1)
        ledger.counts(0.0)
        registry = WatchdogMetrics(lambda: view, ledger, "", ("cuda:0",)).registry
        return list(rows(registry, CountLines(ledger).text(False)))


def gateway() -> list[Row]:
    return list(rows(GatewayMetrics(lambda: 0, lambda: 0).registry))


def _figures() -> GpuFigures:
    """Every figure, of one GPU."""
    plain = {bool: True, int: 1, float: 1.0, str: "x"}
    values: dict[str, Any] = {}
    for name, hint in get_type_hints(GpuFigures).items():
        kinds = [kind for kind in get_args(hint) or (hint,) if kind is not types.NoneType]
        kind = get_origin(kinds[0]) or kinds[0]
        values[name] = () if kind is tuple else plain.get(kind) or get_args(kinds[0])[0]
    return GpuFigures(**values | {"fault": None})


def _series(row: Row) -> str:
    if row.name in SERIES:
        return SERIES[row.name]
    if row.labels and not OPEN & set(row.labels):
        return str(row.label_sets)
    counts = [LABELS[label][0] for label in row.labels]
    return " × ".join(count for count in counts if count != "1") or "1"


def _table(heading: str, where: str, found: Iterable[Row]) -> Iterator[str]:
    yield f"## {heading}\n\n{where}\n"
    yield "| metric | type | labels | series at most | what it says |\n|---|---|---|---|---|"
    for row in found:
        labels = ", ".join(f"`{label}`" for label in row.labels)
        yield f"| `{row.name}` | {row.kind} | {labels} | {_series(row)} | {row.text} |"
    yield ""


def page() -> str:
    lines = [
        "# Metrics\n",
        "Two plain scrape targets, in Prometheus' text format, or in OpenMetrics with exemplars where the scraper asks",
        "for that. `make dashboards` writes this page.\n",
        *_table("Gateway", "Port 8080, `/metrics`.", gateway()),
        *_table(
            "Watchdog",
            "Port 9400, `/metrics`. It reads what workers count from their pages: a hung worker stops no scrape, and "
            "counters outlive\nthe workers that moved them.",
            watchdog(),
        ),
        "## How many series\n",
        "D devices, L layers, E routed experts, B token buckets (13 with the default of 4096 tokens a batch). Series",
        "of histograms are counted without their buckets. No label has a value from outside: a layer that is not",
        "served is counted with an empty name, an Xid that is not in the table as `other`.\n",
        "`fdmoe_expert_tokens_total` is the one family that grows with the model: 6144 series for the 48 layers and",
        "128 experts of Qwen3-30B-A3B, 16384 for 64 layers of 256. `watchdog.expert_series: false` leaves it out;",
        "`fdmoe_expert_imbalance_ratio`, one series a layer, stays.\n",
        "| label | what it holds |\n|---|---|",
        *(f"| `{label}` | {text} |" for label, (_, text) in sorted(LABELS.items()) if text),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
