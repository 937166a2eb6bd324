"""What the watchdog shows of its tree: one immutable view, made anew each turn, read by scrapes and by the CLI."""

from __future__ import annotations

from typing import Literal

import msgspec

from fdmoe_watchdog.gpu_view import GpuView


class WorkerView(msgspec.Struct, frozen=True):
    """`state`: a policy.Life value. `path`: what this worker serves on, `standby` if it is not active. `weights`: the
    generation of the holder that it maps from. `gpu_memory_bytes`: as the driver counts it; None where it does not."""

    name: str
    device: str
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
    weights: int
    gpu_memory_bytes: int | None


class HolderView(msgspec.Struct, frozen=True):
    """The process that holds a device's weights; `state`: a policy.Life value."""

    name: str
    generation: int
    pid: int
    state: str
    size_bytes: int


class SpareView(msgspec.Struct, frozen=True):
    """A process that waits to become one of a device's workers, or the gateway. absent: it is wanted, and there is none
    now."""

    pid: int = 0
    state: Literal["absent", "starting", "ready"] = "absent"


class DeviceView(msgspec.Struct, frozen=True):
    """`buckets`: the token buckets that the fused path is proven for; None: all. `spares`: one for each worker, or none
    where the settings want none."""

    name: str
    path: str
    active: str | None
    buckets: tuple[int, ...] | None
    restarts_left: int
    holder: HolderView
    spares: tuple[SpareView, ...] = ()


class GatewayView(msgspec.Struct, frozen=True):
    """`spares`: a process that waits to take its place, or none where none is wanted."""

    url: str
    pid: int
    spares: tuple[SpareView, ...] = ()


# one decision of the watchdog: `at` (ISO 8601, UTC), `event`, and what belongs to it
Event = dict[str, str | int | float]


class TreeView(msgspec.Struct, frozen=True):
    """The status document (JSON) of `fdmoe status --json`. `path`: of all devices' the one that is nearest to the
    baseline; "down" if no device serves."""

    version: str
    path: str
    chaos: bool
    draining: bool
    uptime_s: float
    devices: tuple[DeviceView, ...]
    workers: tuple[WorkerView, ...]
    gateway: GatewayView
    gpus: tuple[GpuView, ...]
    events: tuple[Event, ...]
    last_flight: str | None

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)
