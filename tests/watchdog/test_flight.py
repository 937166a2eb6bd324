"""A stall in words, kept on disk within bounds."""

from __future__ import annotations

import dataclasses
import json
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fdmoe_watchdog import flight
from fdmoe_watchdog.page import Exit, Phase, Snapshot, Stage, Wait

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)


def slot(*, launch: int, ticket: int, phase: Phase, expert: int = 0, tile: tuple[int, int] = (0, 0),
         wait: Wait = Wait.NONE, target: int = 0, seen: int = 0) -> bytes:  # fmt: skip
    return struct.pack(
        "<8Q", launch, ticket + 1, phase, expert, tile[0] << 32 | tile[1], wait << 32 | target, seen, 0
    )  # fmt: skip


def page(*slots: bytes) -> Snapshot:
    return Snapshot(
        pid=9, generation=2, abort=0, begun=7, begun_at_ns=1_000_000_000, tokens=16, layer=3, deadline_ns=0, ended=6,
        exit=Exit.DONE, items=(0, 0, 0, 0), stage=Stage.SERVING, host_beats=0, answered=4, baseline_begun=0,
        baseline_ended=0, fused_batches=0, baseline_batches=0, submitted=5, slots=b"".join(slots),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (
            page(
                slot(launch=7, ticket=4, phase=Phase.DOWN, expert=9, tile=(0, 4), wait=Wait.UP_TILES, target=6, seen=3),
                slot(launch=7, ticket=41, phase=Phase.DOWN, expert=94, wait=Wait.UP_TILES, target=6),
                slot(launch=7, ticket=42, phase=Phase.LEFT),
                slot(launch=6, ticket=9, phase=Phase.UP),
            ),
            "launch 7 of layer 3, 16 tokens: CTA 0 waits before down, expert 9, tile (0, 4), for 3 of 6 up tiles of "
            "its row tile (2 waiting, 0 working, 1 left, of 3 CTAs)",
        ),
        (
            page(
                slot(launch=7, ticket=50, phase=Phase.COMBINE, tile=(2, 0), wait=Wait.DOWN_TILES, target=12, seen=11),
                slot(launch=7, ticket=5, phase=Phase.UP, expert=1, tile=(1, 2)),
            ),
            "launch 7 of layer 3, 16 tokens: CTA 1 is at up, expert 1, tile (1, 2) and does not finish it; CTA 0 waits "
            "before combine tile 2, for 1 of 12 down tiles (1 waiting, 1 working, 0 left, of 2 CTAs)",
        ),
        (page(slot(launch=6, ticket=1, phase=Phase.LEFT)), "launch 7: no CTA has shown a beat"),
    ],
)
def test_the_verdict_names_cta_phase_expert_and_tile(snapshot: Snapshot, words: str) -> None:
    assert flight.explain(snapshot) == words


def test_a_record_holds_the_page_and_the_newest_are_kept(tmp_path: Path) -> None:
    snapshot = page(slot(launch=7, ticket=5, phase=Phase.UP, expert=1, tile=(1, 2)), bytes(64))
    for number in range(4):
        document = flight.record(
            dataclasses.replace(snapshot, begun=7 + number),
            worker="a", cause="stall", quiet_s=0.0612, now_ns=1_250_000_000, at=AT + timedelta(seconds=number),
        )  # fmt: skip
        path = flight.save(tmp_path / "flights", document, keep=2)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "flight-2026-01-02T030407.678Z-a-g2-9.json",
        "flight-2026-01-02T030408.678Z-a-g2-10.json",
    ]
    read = json.loads(path.read_text())
    assert (read["cause"], read["quiet_s"], read["begun_s_ago"], read["stage"]) == ("stall", 0.0612, 0.25, "serving")
    # the slot that nobody wrote is left out
    assert read["slots"] == [
        {"launch": 7, "ticket": 5, "phase": "up", "expert": 1, "row_tile": 1, "column_tile": 2, "wait": "none",
         "target": 0, "seen": 0, "items": 0}
    ]  # fmt: skip
