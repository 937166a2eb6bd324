"""Trees as the status page sees them, made up: of any size, at peace or in a stall."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec

from fdmoe_watchdog.flights import FlightView
from fdmoe_watchdog.gpu_view import GpuView
from fdmoe_watchdog.messages import GpuFigures, LayerInfo, PathTraffic, Traffic
from fdmoe_watchdog.page import Exit, Phase, Snapshot, Stage, Wait
from fdmoe_watchdog.status import DeviceView, Event, GatewayView, HolderView, TreeView, WorkerView
from fdmoe_watchdog.status_page.beats import Beats
from fdmoe_watchdog.status_page.history import Progress, Sample
from fdmoe_watchdog.status_page.live import LiveView

LAYERS = (LayerInfo("demo/layers.1", 64, "FP32", 8, 2),)
AT = 1_900_000_000.0  # 2030-03-17T17:46:40 UTC
STALL: Event = {
    "at": "2030-03-17T17:43:40.100+00:00", "event": "stall", "worker": "a", "generation": 1, "cause": "stall",
    "launch": 7, "quiet_s": 0.061, "begun_s_ago": 0.064,
    "verdict": "CTA 0 waits in down, expert 3, tile (0, 0), for 1 of 2 up tiles, and no CTA holds the missing tile: "
    "its completion was lost; launch 7 of demo/layers.1 with 5 tokens: 1 waiting, 0 working, 15 left, of 16 CTAs",
}  # fmt: skip
EVENTS: tuple[Event, ...] = (
    {"at": "2030-03-17T17:40:00.000+00:00", "event": "worker_start", "worker": "a", "generation": 1, "reason": "start"},
    {"at": "2030-03-17T17:40:04.000+00:00", "event": "route", "worker": "a", "generation": 1},
    STALL,
    {
        "at": "2030-03-17T17:43:40.101+00:00", "event": "path_switch", "worker": "a", "from": "fused",
        "to": "baseline", "reason": "stall",
    },
    {"at": "2030-03-17T17:43:40.150+00:00", "event": "abort_ended", "worker": "a"},
    {"at": "2030-03-17T17:43:40.182+00:00", "event": "recovery", "rung": "abort", "worker": "a", "seconds": 0.082},
)  # fmt: skip
FLIGHT = FlightView(
    Path("/flights/flight-000001.json"), "2030-03-17T17:43:40.100+00:00", "a", "stall", str(STALL["verdict"])
)  # fmt: skip


def slot(launch: int, phase: Phase = Phase.LEFT, wait: Wait = Wait.NONE) -> bytes:
    return struct.pack("<8Q", launch, 1, phase, 0, 0, wait << 32 | 1, 0, 1)


def page(slots: bytes, *, begun: int = 7, ended: int = 7) -> Snapshot:
    """A worker's page that serves; with begun > ended its launch is outstanding."""
    return Snapshot(
        pid=1, generation=1, abort=0, begun=begun, begun_at_ns=0, tokens=5, layer=0, deadline_ns=0, ended=ended,
        exit=Exit.DONE, items=(1, 2, 3, 4), stage=Stage.SERVING, host_beats=0, answered=6, baseline_begun=0,
        baseline_ended=0, fused_batches=7, baseline_batches=3, submitted=7, slots=slots,
    )  # fmt: skip


def idle_beats(worker: str, ctas: int = 16, slots: int = 16) -> Beats:
    return Beats(worker, LAYERS, page(slot(7) * ctas + bytes(64) * (slots - ctas)), (0.0,) * slots, 100.0, 0.05)


def stalled_beats(worker: str, ctas: int = 16) -> Beats:
    """CTA 0 waits in vain, CTA 1 is behind it, CTA 2 works, the others have left."""
    lines = [slot(7, Phase.DOWN, Wait.UP_TILES), slot(7, Phase.COMBINE, Wait.DOWN_TILES), slot(7, Phase.UP)]
    ages = (0.0611, 0.030, 0.001, *(0.06 for _ in range(ctas - 3)))
    changed_at = tuple(100.0 - age for age in ages)
    return Beats(
        worker, LAYERS, page(b"".join(lines) + slot(7) * (ctas - 3), ended=6), changed_at, 100.0, 0.05
    )  # fmt: skip


def gpu(device: str, busy: float) -> GpuView:
    figures = GpuFigures(
        uuid=device, name="NVIDIA H200", utilization=busy, sm_activity=busy, tensor_activity=0.0, dram_bandwidth=0.0,
        memory_used_bytes=3 * 2**30, memory_total_bytes=140 * 2**30, power_watts=139.2, temperature_celsius=41,
    )  # fmt: skip
    return GpuView(device, True, "", "nvml", True, {"79": 0}, None, (figures,))


def sample(number: int, devices: int, path: str = "fused", **progress: object) -> Sample:
    traffic = Traffic(0.5, {path: PathTraffic(100 + number % 40, 0.0023, 0.0061)}, 0, 8, 2)  # type: ignore[dict-item]
    one = Progress(50.0 + number % 20, 1200.0, None, True)
    return Sample(AT - 120 + number / 2, traffic, (msgspec.structs.replace(one, **progress),) * devices)


def tree(
    *,
    devices: int = 1,
    path: str = "fused",
    state: str = "ready",
    events: tuple[Event, ...] = EVENTS[:2],
    gpus: tuple[GpuView, ...] = (),
    chaos: bool = False,
    draining: bool = False,
) -> TreeView:
    names = ["cpu"] if devices == 1 else [f"cuda:{index}" for index in range(devices)]
    suffixes = [""] if devices == 1 else [str(index) for index in range(devices)]
    workers = tuple(
        WorkerView(
            name=f"{letter}{suffix}", device=name, generation=1, pid=100 + 2 * index + (letter == "b"),
            state=state if letter == "a" else "ready", path=path if letter == "a" else "standby", stage="serving",
            outstanding=False, heartbeat_age_s=0.0, last_heartbeat_at=0.0, stalled_ctas=0, slots=16,
            batches={"fused": 120, "baseline": 3}, weights=1, gpu_memory_bytes=None,
        )
        for index, (name, suffix) in enumerate(zip(names, suffixes, strict=True))
        for letter in "ab"
    )  # fmt: skip
    return TreeView(
        version="1.2.3", path=path, chaos=chaos, draining=draining, uptime_s=400.0,
        devices=tuple(
            DeviceView(name, path, f"a{suffix}", None, 10, HolderView(f"weights{suffix}", 1, 99, "ready", 2**20))
            for name, suffix in zip(names, suffixes, strict=True)
        ),
        workers=workers, gateway=GatewayView("http://127.0.0.1:8080", 98), gpus=gpus, events=events, last_flight=None,
    )  # fmt: skip


def live(
    view: TreeView, beats: tuple[Beats, ...] | None = None, *, taken_at: float = 1000.0, samples: int = 6
) -> LiveView:
    """Without `beats`, every worker idles."""
    happened = {str(event["event"]): event for event in view.events}
    return LiveView(
        tree=view,
        taken_at=taken_at,
        beats=tuple(idle_beats(worker.name) for worker in view.workers) if beats is None else beats,
        samples=tuple(sample(number, len(view.devices), view.path) for number in range(samples)),
        first=0,
        flight=FLIGHT if "stall" in happened else None,
        stall=happened.get("stall"),
        recovered=happened.get("recovery"),
    )
