"""The view that scrapes and the CLI read, made from what the supervisor knows at one moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from fdmoe_watchdog import policy
from fdmoe_watchdog.page import Phase, Snapshot, parse_slots
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.process import WorkerProcess
from fdmoe_watchdog.status import Event, GatewayView, TreeView, WorkerView


def look(
    plan: TreePlan,
    state: policy.State,
    processes: Mapping[str, WorkerProcess],
    *,
    uptime_s: float,
    now: float,
    gateway: GatewayView,
    events: tuple[Event, ...],
    last_flight: Path | None,
) -> TreeView:
    """`now` and `uptime_s` are of the supervisor's monotonic clock."""
    recent = sum(at > now - plan.recovery.restart_period_s for at in state.restarts)
    return TreeView(
        version=plan.version,
        device=plan.device,
        path=state.path,
        active=state.active,
        chaos=plan.chaos,
        uptime_s=round(uptime_s, 3),
        restarts_left=plan.recovery.restart_budget - recent,
        workers=tuple(_worker(name, state, processes.get(name), now) for name in state.workers),
        gateway=gateway,
        events=events,
        last_flight=str(last_flight) if last_flight else None,
    )


def _worker(name: str, state: policy.State, process: WorkerProcess | None, now: float) -> WorkerView:
    worker = state.workers[name]
    page = process.tracker.last if process else None
    beat_at = process.tracker.beat_at if process else 0.0
    return WorkerView(
        name=name,
        generation=worker.generation,
        pid=process.pid if process else 0,
        state=worker.life.value,
        path=state.path if name == state.active else "standby",
        stage=page.stage.name.lower() if page else "none",
        outstanding=page.outstanding if page else False,
        heartbeat_age_s=round(process.tracker.quiet_s, 4) if process else 0.0,
        last_heartbeat_at=time.time() - (now - beat_at) if beat_at else 0.0,
        stalled_ctas=_not_left(page) if page and worker.life is policy.Life.ABORTING else 0,
        slots=process.page.slots if process else 0,
        batches={"fused": page.fused_batches, "baseline": page.baseline_batches} if page else {},
    )


def _not_left(page: Snapshot) -> int:
    slots = parse_slots(page.slots)
    return sum(slot.launch == page.begun and slot.phase is not Phase.LEFT for slot in slots)
