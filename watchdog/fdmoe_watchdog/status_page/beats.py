"""The beats of one worker's CTAs as the page's heat map shows them: a letter and an age for each."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from fdmoe_watchdog.messages import LayerInfo
from fdmoe_watchdog.page import LINE_WORDS, Phase, SlotWord, Snapshot
from fdmoe_watchdog.process import WorkerProcess

# the longest age that is told; a document's size is bounded by it
_LONGEST_MS = 99_999_999


@dataclass(frozen=True, slots=True)
class Beats:
    """What the loop hands over: one reading of a page, and when its lines last changed by the tracker's clock.
    `stall_after_s`: 0 for a launch that does not serve; a warm-up compiles, and has the start-up deadline."""

    worker: str
    layers: tuple[LayerInfo, ...]
    page: Snapshot | None
    changed_at: tuple[float, ...]
    clock_s: float
    stall_after_s: float


class Heat(msgspec.Struct, frozen=True):
    """A worker's heat map. `states` has a letter for each CTA that has ever beaten:

        i  no launch is outstanding        k  at work          l  has left the launch
        n  has not begun in this launch    w  waits for others

    `ages_ms`: how long the line of each has been as it is, while a launch is outstanding; else empty. `oldest` is the
    CTA at work, or waiting, of which nothing has been seen for longest: -1 if there is none. `stall_after_ms`: 0 where
    no stall time applies.
    """

    worker: str
    states: str
    ages_ms: tuple[int, ...]
    oldest: int
    stall_after_ms: int
    launch: int
    layer: str
    tokens: int


def take(process: WorkerProcess) -> Beats:
    """In the loop: copies of nothing but 768 references."""
    tracker = process.tracker
    layers = process.ready.layers if process.ready else ()
    stall_after_s = tracker.stall_after_s() if tracker.serving_launch() else 0.0
    return Beats(process.name, layers, tracker.last, tracker.slots.changed_at, tracker.clock_s, stall_after_s)


def heat(beats: Beats) -> Heat:
    """In a server's thread: 0.05 ms for 132 CTAs."""
    page = beats.page
    launches = _column(page.slots, SlotWord.LAUNCH) if page is not None else []
    count = max((cta + 1 for cta, launch in enumerate(launches) if launch), default=0)
    if page is None or not page.outstanding:
        return Heat(beats.worker, "i" * count, (), -1, 0, 0, "", 0)
    phases, waits = _column(page.slots, SlotWord.PHASE), _column(page.slots, SlotWord.WAIT)
    states = "".join(
        _letter(launches[cta] == page.begun, phases[cta], waits[cta] >> 32) for cta in range(count)
    )  # fmt: skip
    ages_ms = tuple(min(round((beats.clock_s - at) * 1000), _LONGEST_MS) for at in beats.changed_at[:count])
    busy = [cta for cta, state in enumerate(states) if state in "kw"]
    return Heat(
        worker=beats.worker,
        states=states,
        ages_ms=ages_ms,
        oldest=max(busy, key=lambda cta: ages_ms[cta], default=-1),
        stall_after_ms=round(beats.stall_after_s * 1000),
        launch=page.begun,
        layer=beats.layers[page.layer].name if page.layer < len(beats.layers) else f"layer {page.layer}",
        tokens=page.tokens,
    )


def _column(slots: bytes, word: SlotWord) -> list[int]:
    return memoryview(slots).cast("Q")[word::LINE_WORDS].tolist() if slots else []


def _letter(in_launch: bool, phase: int, wait: int) -> str:
    if not in_launch:
        return "n"
    if phase == Phase.LEFT:
        return "l"
    return "w" if wait else "k"
