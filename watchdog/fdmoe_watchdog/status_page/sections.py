"""The document of the status page, in sections that change at their own pace. A reader gets those that are new to it.

clock      in every document: its number, the time here, how old the view is, and how long the tree is up
headline   one sentence (headline)
devices    path, who is active, the holder of the weights, restarts left
workers    life, generation, stage, batches
beats      a heat map for each worker (beats)
gpus       figures and the divergence
events     newest first, in words
flight     the last record's verdict
samples    traffic and progress in half seconds (history); `from` is the number of the first: the others follow
"""

from __future__ import annotations

from typing import Any

import msgspec

from fdmoe_watchdog.messages import GpuFigures
from fdmoe_watchdog.status import Event
from fdmoe_watchdog.status_page.beats import heat
from fdmoe_watchdog.status_page.headline import headline
from fdmoe_watchdog.status_page.history import busy_without_progress
from fdmoe_watchdog.status_page.live import LiveView
from fdmoe_watchdog.status_page.words import sentence, tone_of

_FIGURES = (
    "uuid", "name", "utilization", "sm_activity", "tensor_activity", "dram_bandwidth", "memory_used_bytes",
    "memory_total_bytes", "power_watts", "temperature_celsius", "recovery_action",
)  # fmt: skip


def sections(live: LiveView) -> dict[str, bytes]:
    """Each as JSON. Made in a server's thread: 1 ms for 8 devices of 132 CTAs."""
    tree = live.tree
    made: dict[str, Any] = {
        "headline": headline(live),
        "devices": tree.devices,
        "workers": [
            {
                "name": worker.name, "device": worker.device, "generation": worker.generation, "pid": worker.pid,
                "state": worker.state, "path": worker.path, "stage": worker.stage, "batches": worker.batches,
                "stalled_ctas": worker.stalled_ctas,
            }
            for worker in tree.workers
        ],
        "beats": [heat(one) for one in live.beats],
        "gpus": [
            {
                "device": view.device, "reason": view.reason, "source": view.source, "xids": view.xids,
                "gpus": [_figures(gpu) for gpu in view.gpus],
            }
            for view in tree.gpus
        ],
        "divergence": [
            device.name for index, device in enumerate(tree.devices) if busy_without_progress(live.samples, index)
        ],
        "events": [_told(event) for event in reversed(tree.events)],
        "flight": _flight(live),
        "tree": {"version": tree.version, "path": tree.path, "gateway": tree.gateway.url, "draining": tree.draining},
    }  # fmt: skip
    return {name: msgspec.json.encode(section) for name, section in made.items()}


def _told(event: Event) -> dict[str, str]:
    return {"at": str(event["at"]), "name": str(event["event"]), "tone": tone_of(event), "words": sentence(event)}


def _figures(gpu: GpuFigures) -> dict[str, Any]:
    return {name: value for name in _FIGURES if (value := getattr(gpu, name)) is not None}


def _flight(live: LiveView) -> dict[str, str] | None:
    flight = live.flight
    if flight is None:
        return None
    return {
        "at": flight.at, "worker": flight.worker, "cause": flight.cause, "verdict": flight.verdict,
        "path": str(flight.path),
    }  # fmt: skip
