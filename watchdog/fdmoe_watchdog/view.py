"""The view that scrapes and the CLI read, made from what the supervisor knows at one moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from fdmoe_watchdog import policy
from fdmoe_watchdog.gpu_view import GpuView, memory_bytes
from fdmoe_watchdog.messages import GpuFigures
from fdmoe_watchdog.page import Phase, Snapshot, parse_slots
from fdmoe_watchdog.pair import Pair
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.process import WorkerProcess
from fdmoe_watchdog.status import DeviceView, Event, GatewayView, HolderView, TreeView, WorkerView

_NEAREST_TO_BASELINE = ("baseline", "shadow", "fused")


def look(
    plan: TreePlan,
    pairs: Sequence[Pair],
    *,
    uptime_s: float,
    now: float,
    draining: bool,
    gateway: GatewayView,
    gpus: tuple[GpuView, ...],
    events: tuple[Event, ...],
    last_flight: Path | None,
) -> TreeView:
    """`now` and `uptime_s` are of the supervisor's monotonic clock."""
    serving = {pair.state.path for pair in pairs if pair.state.active is not None}
    return TreeView(
        version=plan.version,
        path=next((path for path in _NEAREST_TO_BASELINE if path in serving), "down"),
        chaos=plan.chaos,
        draining=draining,
        uptime_s=round(uptime_s, 3),
        devices=tuple(_device(plan, pair, now) for pair in pairs),
        workers=tuple(_worker(pair, name, now, _gpus(gpus, pair)) for pair in pairs for name in pair.workers),
        gateway=gateway,
        gpus=gpus,
        events=events,
        last_flight=str(last_flight) if last_flight else None,
    )


def _device(plan: TreePlan, pair: Pair, now: float) -> DeviceView:
    state = pair.state
    recent = sum(at > now - plan.recovery.restart_period_s for at in state.restarts)
    return DeviceView(
        name=pair.device,
        path=state.path,
        active=state.active,
        buckets=state.buckets,
        restarts_left=plan.recovery.restart_budget - recent,
        holder=HolderView(
            name=pair.holder_name,
            generation=state.holder.generation,
            pid=pair.holder.pid if pair.holder else 0,
            state=state.holder.life.value,
            size_bytes=pair.holder.ready.size_bytes if pair.holder and pair.holder.ready else 0,
        ),
        spares=pair.spares.views,
    )


def _gpus(views: tuple[GpuView, ...], pair: Pair) -> tuple[GpuFigures, ...]:
    return next((view.gpus for view in views if view.device == pair.device), ())


def _worker(pair: Pair, name: str, now: float, gpus: tuple[GpuFigures, ...]) -> WorkerView:
    worker = pair.state.workers[name]
    process: WorkerProcess | None = pair.processes.get(name)
    page = process.tracker.last if process else None
    beat_at = process.tracker.beat_at if process else 0.0
    return WorkerView(
        name=name,
        device=pair.device,
        generation=worker.generation,
        pid=process.pid if process else 0,
        state=worker.life.value,
        path=pair.state.path if name == pair.state.active else "standby",
        stage=page.stage.name.lower() if page else "none",
        outstanding=page.outstanding if page else False,
        heartbeat_age_s=round(process.tracker.quiet_s, 4) if process else 0.0,
        last_heartbeat_at=time.time() - (now - beat_at) if beat_at else 0.0,
        stalled_ctas=_not_left(page) if page and worker.life is policy.Life.ABORTING else 0,
        slots=process.page.slots if process else 0,
        batches={"fused": page.fused_batches, "baseline": page.baseline_batches} if page else {},
        weights=worker.weights,
        gpu_memory_bytes=memory_bytes(gpus, process.pid) if process else None,
    )


def _not_left(page: Snapshot) -> int:
    slots = parse_slots(page.slots)
    return sum(slot.launch == page.begun and slot.phase is not Phase.LEFT for slot in slots)
