"""What the watchdog shows of its tree: one immutable view, made anew each turn, read by scrapes and by the CLI."""

from __future__ import annotations

import msgspec


class WorkerView(msgspec.Struct, frozen=True):
    """`state`: a policy.Life value. `path`: what this worker serves on, `standby` if it is not active."""

    name: str
    generation: int
    pid: int
    state: str
    path: str
    stage: str
    outstanding: bool
    heartbeat_age_s: float
    last_heartbeat_at: float
    stalled_ctas: int
    slots: int
    batches: dict[str, int]


class GatewayView(msgspec.Struct, frozen=True):
    url: str
    pid: int


# one decision of the watchdog: `at` (ISO 8601, UTC), `event`, and what belongs to it
Event = dict[str, str | int | float]


class TreeView(msgspec.Struct, frozen=True):
    """The status document (JSON) of `fdmoe status --json`."""

    version: str
    device: str
    path: str
    active: str | None
    chaos: bool
    uptime_s: float
    restarts_left: int
    workers: tuple[WorkerView, ...]
    gateway: GatewayView
    events: tuple[Event, ...]
    last_flight: str | None

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)
