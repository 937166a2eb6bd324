"""The flight record: the beat page at the moment of a stall, saved as JSON and explained in words."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from fdmoe_watchdog.page import Phase, Slot, Snapshot, Wait, parse_slots

FORMAT = 1
_WAITED_FOR = {
    Wait.ROUTE_TILES: "route tiles",
    Wait.UP_TILES: "up tiles of its row tile",
    Wait.DOWN_TILES: "down tiles",
}


def explain(snapshot: Snapshot) -> str:
    """Who waits for what, in one sentence: the CTAs at work first, for the others wait for them."""
    slots = [
        (cta, slot) for cta, slot in enumerate(parse_slots(snapshot.slots)) if slot.launch == snapshot.begun
    ]  # fmt: skip
    if not slots:
        return f"launch {snapshot.begun}: no CTA has shown a beat"
    waiting = [(cta, slot) for cta, slot in slots if slot.wait is not Wait.NONE]
    working = [(cta, slot) for cta, slot in slots if slot.wait is Wait.NONE and slot.phase is not Phase.LEFT]
    left = sum(slot.phase is Phase.LEFT for _, slot in slots)
    parts = []
    if working:
        cta, slot = min(working, key=lambda pair: pair[1].ticket or 0)
        parts.append(f"CTA {cta} is at {_item(slot)} and does not finish it")
    if waiting:
        cta, slot = min(waiting, key=lambda pair: pair[1].ticket or 0)
        parts.append(
            f"CTA {cta} waits before {_item(slot)}, for {slot.target - slot.seen} of {slot.target} "
            f"{_WAITED_FOR[slot.wait]}"
        )
    counts = f"{len(waiting)} waiting, {len(working)} working, {left} left, of {len(slots)} CTAs"
    return f"launch {snapshot.begun} of layer {snapshot.layer}, {snapshot.tokens} tokens: {'; '.join(parts)} ({counts})"


def _item(slot: Slot) -> str:
    match slot.phase:
        case Phase.UP | Phase.DOWN if slot.wait is not Wait.ROUTE_TILES:
            return f"{slot.phase.name.lower()}, expert {slot.expert}, tile ({slot.row_tile}, {slot.column_tile})"
        case Phase.UP:
            return "its first expert tile"
        case _:
            return f"{slot.phase.name.lower()} tile {slot.row_tile}"


def record(
    snapshot: Snapshot, *, worker: str, cause: str, quiet_s: float, now_ns: int, at: datetime
) -> dict[str, object]:
    """The record as a JSON document; times in seconds, `begun_s_ago` by CLOCK_MONOTONIC."""
    slots = parse_slots(snapshot.slots)
    return {
        "format": FORMAT,
        "at": at.astimezone(UTC).isoformat(timespec="milliseconds"),
        "worker": worker,
        "generation": snapshot.generation,
        "pid": snapshot.pid,
        "cause": cause,
        "verdict": explain(snapshot),
        "launch": snapshot.begun,
        "ended": snapshot.ended,
        "layer": snapshot.layer,
        "tokens": snapshot.tokens,
        "quiet_s": round(quiet_s, 6),
        "begun_s_ago": round((now_ns - snapshot.begun_at_ns) / 1e9, 6),
        "stage": snapshot.stage.name.lower(),
        "submitted": snapshot.submitted,
        "answered": snapshot.answered,
        "slots": [_as_json(slot) for slot in slots if slot.phase is not Phase.NONE],
    }


def _as_json(slot: Slot) -> dict[str, object]:
    return asdict(slot) | {"phase": slot.phase.name.lower(), "wait": slot.wait.name.lower()}


def save(directory: Path, document: dict[str, object], *, keep: int = 100) -> Path:
    """Write one record (whole or not at all) and remove the oldest beyond `keep`. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    stamp = str(document["at"]).replace(":", "").replace("+0000", "Z")
    path = directory / f"flight-{stamp}-{document['worker']}-g{document['generation']}-{document['launch']}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, path)
    for old in sorted(directory.glob("flight-*.json"))[:-keep]:
        old.unlink(missing_ok=True)
    return path
