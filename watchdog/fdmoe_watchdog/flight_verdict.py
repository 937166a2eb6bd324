"""A stall in plain words: who waits for what, and who holds it.

A waiting CTA's slot names what it waits for, a working CTA's what it has taken, so the waits are followed on the page:

    slot waits for    it is held by CTAs whose slot shows
    ROUTE_TILES       any route item
    UP_TILES          an up item of the same expert and row tile; for an up item that of column 0, which sorts the rows;
                      for a down item of all experts any up item
    DOWN_TILES        any down item

Only an item with an older ticket can be waited for, since tickets are numbered in topological order. So the waits are
followed in one pass from the oldest ticket on, and noise on the page cannot make it go round in circles.

In the kernel's form for Hopper a CTA takes tickets ahead, and its slot shows the one it works on. There, what is
waited for may be held unseen behind an older item. `seen` is the count when the waiting CTA last wrote its line, which
it does every few milliseconds: it may be behind, but not by a stall time.
"""

from __future__ import annotations

import bisect
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fdmoe_watchdog.page import (
    ALL_EXPERTS,
    LINE_BYTES,
    LINE_WORDS,
    Phase,
    Slot,
    SlotWord,
    Snapshot,
    Stage,
    Wait,
    parse_slots,
)

_CAUSES_TOLD = 2
_NO_TICKET = 1 << 64
_THINGS = {Wait.ROUTE_TILES: "route tile", Wait.UP_TILES: "up tile", Wait.DOWN_TILES: "down tile"}
_STAGES = {
    Stage.STARTING: "has not begun to load",
    Stage.TRIAL: "is at its trial kernel",
    Stage.LOADING: "is loading",
    Stage.COMPILING: "is compiling and warming up",
}


@dataclass(frozen=True, slots=True)
class Cta:
    """One CTA that has shown a beat of the launch. `age_s`: since when its line is as it is, None if nobody knows."""

    number: int
    slot: Slot
    phase_word: int
    wait_word: int
    age_s: float | None

    @property
    def order(self) -> int:
        return _NO_TICKET if self.slot.ticket is None else self.slot.ticket

    @property
    def state(self) -> Literal["waiting", "working", "left", "unreadable"]:
        if self.slot.phase is Phase.NONE or (self.slot.wait is Wait.NONE and self.wait_word != 0):
            return "unreadable"
        if self.slot.wait is not Wait.NONE:
            return "waiting"
        return "left" if self.slot.phase is Phase.LEFT else "working"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why CTAs do not go on. `waiter` is the oldest of `waiting` that wait for the same, and `ctas[0]` what holds it
    up; the younger ones may wait for more of `ctas`.

    held    `ctas` have taken what `waiter` waits for (or what nobody waits for: None) and do not finish it
    behind  no CTA shows it; `ctas` are still at older items, and may hold it behind them
    lost    no CTA can hold it: it was finished, and the signal of that was lost
    """

    kind: Literal["held", "behind", "lost"]
    ctas: tuple[int, ...]
    waiter: int | None
    waiting: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`words` are for people; `ctas` are those that have shown a beat of the outstanding launch."""

    words: str
    causes: tuple[Cause, ...] = ()
    ctas: tuple[Cta, ...] = ()


def explain(
    snapshot: Snapshot,
    *,
    cause: str = "stall",
    layer: str | None = None,
    ages_s: Sequence[float] = (),
    exit_code: int | None = None,
) -> Verdict:
    """The verdict on one reading of a page, whatever is on it. `ages_s` is of SlotClock, `layer` the layer's name."""
    ctas = ctas_of(snapshot, ages_s) if snapshot.outstanding else ()
    causes = find_causes(ctas)
    launch = f"launch {snapshot.begun} of {layer or f'layer {snapshot.layer}'} with {_count(snapshot.tokens, 'token')}"
    if not snapshot.outstanding:
        words = f"no launch is outstanding; {_host(snapshot)}"
    elif not ctas:
        words = f"no CTA has shown a beat of {launch}"
    else:
        words = f"{_device(causes, ctas)}; {launch}: {_counts(ctas)}"
    if opening := _OPENINGS.get(cause, ""):
        if exit_code is not None:
            opening = f"the worker's process has ended ({ended_by(exit_code)})"
        words = f"{opening}; {words}"
    return Verdict(words, causes, ctas)


_OPENINGS = {
    "frozen": "the worker shows no sign of work",
    "startup": "the worker did not become ready in time",
    "failed": "the worker could not start",
    "exit": "the worker's process is ending",
    "page": "the worker's beat page is damaged",
    "unreachable": "the gateway cannot reach the worker",
}


def ctas_of(snapshot: Snapshot, ages_s: Sequence[float] = ()) -> tuple[Cta, ...]:
    """Those that have shown a beat of the launch that was begun last."""
    raw = snapshot.slots[: len(snapshot.slots) // LINE_BYTES * LINE_BYTES]
    words = memoryview(raw).cast("Q")
    found = []
    for number, launch in enumerate(words[SlotWord.LAUNCH :: LINE_WORDS].tolist() if raw else ()):
        if launch == snapshot.begun:
            (slot,) = parse_slots(raw[number * LINE_BYTES : (number + 1) * LINE_BYTES])
            line = words[number * LINE_WORDS : (number + 1) * LINE_WORDS]
            age_s = ages_s[number] if number < len(ages_s) else None
            found.append(Cta(number, slot, line[SlotWord.PHASE], line[SlotWord.WAIT] >> 32, age_s))
    return tuple(found)


# ---- following the waits

Thing = tuple[str | int, ...]


@dataclass
class _Holders:
    """The CTAs that hold one thing, oldest ticket first."""

    working: list[Cta] = field(default_factory=list)
    waiting: list[Cta] = field(default_factory=list)


def find_causes(ctas: Sequence[Cta]) -> tuple[Cause, ...]:
    """What keeps the CTAs of one launch from going on, the cause of the oldest wait first."""
    in_order = sorted(ctas, key=lambda cta: (cta.order, cta.number))
    working = [cta for cta in in_order if cta.state == "working"]
    holders = _find_holders(in_order)
    causes: dict[Thing, Cause] = {}
    roots: dict[int, Thing] = {}
    for cta in in_order:
        if cta.state != "waiting":
            continue
        thing = _awaited(cta)
        root: Thing
        holding = holders.get(thing, _Holders())
        if at_work := _older(holding.working, cta):
            root, cause = ("held", at_work[0].number), Cause("held", _numbers(at_work), cta.number, 0)
        elif held_up := _older(holding.waiting, cta):
            root = roots[held_up[0].number]
            cause = causes[root]
        elif before := _older(working, cta):
            root, cause = ("behind",), Cause("behind", _numbers(before), cta.number, 0)
            if (told := ("held", before[0].number)) in causes:
                # one that is known not to finish explains this wait as well
                root, cause = told, causes[told]
        else:
            root, cause = ("lost", *thing), Cause("lost", (), cta.number, 0)
        roots[cta.number] = root
        known = causes.get(root, cause)
        # a younger wait may be for more
        ctas_of_both = known.ctas if known.ctas == cause.ctas else tuple(dict.fromkeys((*known.ctas, *cause.ctas)))
        causes[root] = replace(known, ctas=ctas_of_both, waiting=known.waiting + 1)
    blamed = {number for cause in causes.values() for number in cause.ctas}
    if others := [cta for cta in working if cta.number not in blamed]:
        causes["nobody waits",] = Cause("held", _numbers(others), None, 0)
    return tuple(causes.values())


def _find_holders(in_order: Sequence[Cta]) -> dict[Thing, _Holders]:
    holders: dict[Thing, _Holders] = {}
    for cta in in_order:
        for thing in _held(cta):
            holding = holders.setdefault(thing, _Holders())
            (holding.working if cta.state == "working" else holding.waiting).append(cta)
    return holders


def _held(cta: Cta) -> tuple[Thing, ...]:
    """What a CTA's slot says that it has taken, in the terms of `_awaited`."""
    slot = cta.slot
    if cta.state not in ("working", "waiting") or slot.wait is Wait.ROUTE_TILES:
        return ()
    match slot.phase:
        case Phase.ROUTE:
            return (("route",),)
        case Phase.UP:
            rows = (slot.expert, slot.row_tile)
            first = (("first up", *rows),) if slot.column_tile == 0 else ()
            return (("up", *rows), *first, ("any up",))
        case Phase.DOWN:
            return (("down",),)
        case _:
            return ()


def _awaited(cta: Cta) -> Thing:
    slot = cta.slot
    match slot.wait:
        case Wait.UP_TILES if slot.phase is Phase.DOWN and slot.expert == ALL_EXPERTS:
            return ("any up",)
        case Wait.UP_TILES:
            return ("first up" if slot.phase is Phase.UP else "up", slot.expert, slot.row_tile)
        case Wait.DOWN_TILES:
            return ("down",)
        case _:
            return ("route",)


def _older(in_order: list[Cta], than: Cta) -> list[Cta]:
    return in_order[: bisect.bisect_left(in_order, than.order, key=lambda cta: cta.order)]


def _numbers(ctas: list[Cta]) -> tuple[int, ...]:
    return tuple(cta.number for cta in ctas)


# ---- words


def _device(causes: Sequence[Cause], ctas: Sequence[Cta]) -> str:
    by_number = {cta.number: cta for cta in ctas}
    parts = [_sentence(cause, by_number) for cause in causes[:_CAUSES_TOLD]]
    if more := causes[_CAUSES_TOLD:]:
        parts.append(f"{_count(len(more), 'more cause')} of waits")
    if not parts:
        left = sum(cta.state == "left" for cta in ctas)
        parts.append(
            f"all {_count(left, 'CTA')} that have shown a beat have left, and the launch has not ended"
            if left == len(ctas)
            else "no CTA shows a work item that is known here"
        )
    return "; ".join(parts)


def _sentence(cause: Cause, ctas: dict[int, Cta]) -> str:
    if cause.waiter is None:
        return _does_not_finish(cause.ctas, ctas)
    waiter = ctas[cause.waiter]
    slot = waiter.slot
    missing, thing = max(slot.target - slot.seen, 0), _THINGS[slot.wait]
    if slot.wait is Wait.ROUTE_TILES:
        where = "before its first expert tile"
    else:
        where = f"in {_item(slot)}"
    words = f"CTA {cause.waiter} waits {where}, for {missing} of {_count(slot.target, thing)}"
    match cause.kind:
        case "held":
            words += f": {_does_not_finish(cause.ctas, ctas)}"
        case "behind":
            older = _does_not_finish(cause.ctas, ctas)
            words += f" that no CTA shows, and that may be held behind an older item: {older}"
        case "lost" if missing == 1:
            words += ", and no CTA holds the missing tile: its completion was lost"
        case "lost":
            words += ", and no CTA holds the missing tiles: their completion was lost"
    if cause.waiting > 1:
        words += f"; {_count(cause.waiting - 1, 'more CTA')} behind it"
    return words


def _does_not_finish(numbers: Sequence[int], ctas: dict[int, Cta]) -> str:
    first = ctas[numbers[0]]
    ago = "" if first.age_s is None else f" {_duration(first.age_s)} ago"
    words = f"CTA {first.number} took {_item(first.slot)}{ago} and does not finish it"
    if len(numbers) > 1:
        named = ", ".join(map(str, numbers[1:4]))
        rest = f" and {len(numbers) - 4} more" if len(numbers) > 4 else ""
        words += f", nor {'CTA' if len(numbers) == 2 else 'CTAs'} {named}{rest} theirs"
    return words


def _item(slot: Slot) -> str:
    tile = f"tile ({slot.row_tile}, {slot.column_tile})"
    match slot.phase:
        case Phase.UP | Phase.DOWN:
            experts = "all experts" if slot.expert == ALL_EXPERTS else f"expert {slot.expert}"
            return f"{slot.phase.name.lower()}, {experts}, {tile}"
        case Phase.ROUTE:
            return f"route, tile {slot.row_tile}"
        case _:
            return f"{slot.phase.name.lower()}, {tile}"


def _counts(ctas: Sequence[Cta]) -> str:
    states = [cta.state for cta in ctas]
    words = ", ".join(f"{states.count(state)} {state}" for state in ("waiting", "working", "left"))
    unreadable = f", {states.count('unreadable')} unreadable" if "unreadable" in states else ""
    return f"{words}{unreadable}, of {_count(len(ctas), 'CTA')}"


def _host(snapshot: Snapshot) -> str:
    if snapshot.stage is not Stage.SERVING:
        return f"the worker {_STAGES[snapshot.stage]}"
    waiting = _count(max(snapshot.submitted - snapshot.answered, 0), "batch", "batches")
    if snapshot.baseline_begun > snapshot.baseline_ended:
        return f"the worker is in run {snapshot.baseline_begun} of the baseline path, with {waiting} unanswered"
    words = f"the worker serves, with {waiting} unanswered"
    if snapshot.waiting:
        words += ", and waits for the device or for messages" if snapshot.host_waits else ", and is not at the device"
    return words


def ended_by(code: int) -> str:
    """How a process ended, by the code that its parent was given."""
    try:
        return f"by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"by signal {-code}"


def _count(number: int, thing: str, things: str = "") -> str:
    return f"{number} {thing if number == 1 else things or thing + 's'}"


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
