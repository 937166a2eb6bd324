"""One sentence on the whole tree, as somebody would say it who has looked at everything else on the page."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Literal

import msgspec

from fdmoe_watchdog.status import DeviceView, TreeView
from fdmoe_watchdog.status_page.live import LiveView
from fdmoe_watchdog.status_page.words import duration

Tone = Literal["good", "warn", "bad"]
_PATHS = {
    "fused": "fused",
    "shadow": "the baseline, with fused in its shadow",
    "baseline": "the baseline",
}


class Headline(msgspec.Struct, frozen=True):
    """`badge`: the state in one or two words. `stall_at`: Unix time of the last stall, None if there was none;
    `stall`: how it ended. `notes`: what else must be known."""

    tone: Tone
    badge: str
    words: str
    stall_at: float | None
    stall: str
    notes: tuple[str, ...]


def headline(live: LiveView) -> Headline:
    tree = live.tree
    tone, badge = _state(tree)
    silent = _silent(live)
    if silent and tone == "good":
        tone, badge = "warn", "Silent"
    ready = sum(worker.state == "ready" for worker in tree.workers)
    words = f"{_serving(tree)} {ready} of {len(tree.workers)} workers ready."
    stall_at = datetime.fromisoformat(str(live.stall["at"])).timestamp() if live.stall else None
    stall = f"recovered in {duration(float(live.recovered['seconds']))}" if live.recovered else ""
    return Headline(tone, badge, words, stall_at, stall, (*silent, *_notes(tree)))


def _silent(live: LiveView) -> tuple[str, ...]:
    """Whose beats are half-way to a stall: nothing is decided yet, and nobody should read that all is well."""
    ages = {worker.name: worker.heartbeat_age_s for worker in live.tree.workers}
    return tuple(
        f"Worker {beats.worker} has shown no beat for {duration(age_s)}; {duration(beats.stall_after_s)} are a stall."
        for beats in live.beats
        if beats.stall_after_s and (age_s := ages.get(beats.worker, 0.0)) >= beats.stall_after_s / 2
    )


def _state(tree: TreeView) -> tuple[Tone, str]:
    active = [device for device in tree.devices if device.active is not None]
    lives = {worker.name: worker.state for worker in tree.workers}
    if tree.draining:
        return "warn", "Draining"
    if not active:
        return ("warn", "Starting") if _starts(tree) else ("bad", "Down")
    if any(lives.get(str(device.active)) == "aborting" for device in active) or "dying" in lives.values():
        return "bad", "Recovering"
    if not tree.gateway.url:
        return "bad", "Down"
    whole = len(active) == len(tree.devices) and all(device.path == "fused" for device in active)
    if whole and set(lives.values()) == {"ready"}:
        return "good", "Serving"
    return "warn", "Degraded"


def _starts(tree: TreeView) -> bool:
    """No worker has ever served: all are in their first life."""
    return all(worker.generation <= 1 for worker in tree.workers)


def _serving(tree: TreeView) -> str:
    paths = Counter(_path(device) for device in tree.devices)
    if list(paths) == ["down"]:
        return "No worker has been ready yet." if _starts(tree) else "Not serving: no worker is active."
    if not tree.gateway.url:
        return "Not serving: the gateway does not listen."
    if len(tree.devices) == 1:
        return f"Serving on {_PATHS[tree.devices[0].path]}."
    serving = sum(count for path, count in paths.items() if path != "down")
    if len(paths) == 1:
        return f"Serving on {_PATHS[next(iter(paths))]}, on all {serving} devices."
    order = [path for path in (*_PATHS, "down") if paths[path]]
    split = ", ".join(f"{paths[path]} {path}" for path in order)
    return f"Serving on {serving} of {len(tree.devices)} devices: {split}."


def _path(device: DeviceView) -> str:
    return "down" if device.active is None else device.path


def _notes(tree: TreeView) -> tuple[str, ...]:
    notes = []
    if tree.draining:
        notes.append("Told to stop: what is in flight is finished, and nothing new is taken.")
    if tree.chaos:
        notes.append("Chaos is on: anybody with access to the run directory may break kernels here on purpose.")
    notes += [f"Device {device.name} has no restart left." for device in tree.devices if device.restarts_left <= 0]
    if any(view.source == "recorded" for view in tree.gpus):
        notes.append("GPU figures are replayed from a recording: a demo, and not this machine.")
    return tuple(notes)
