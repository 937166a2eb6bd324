"""The flight record's document: what was on the page when a worker failed, and what the watchdog knew around it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import msgspec

from fdmoe_watchdog.flight_verdict import Cta, explain
from fdmoe_watchdog.messages import LayerInfo
from fdmoe_watchdog.page import Phase, Snapshot, Wait
from fdmoe_watchdog.stacks import Stacks

FORMAT = 2


class SlotRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A CTA's slot. A phase or wait that no kernel of this version writes is its number. `unchanged_s`: since when."""

    cta: int
    launch: int
    ticket: int | None
    phase: str | int
    expert: int
    row_tile: int
    column_tile: int
    wait: str | int
    target: int
    seen: int
    items: int
    state: str
    unchanged_s: float | None = None


class CauseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """flight_verdict.Cause."""

    kind: str
    ctas: tuple[int, ...] = ()
    waiter: int | None = None
    waiting: int = 0


class InFlightRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests the worker owed an answer to, by the gateway's word, and the ids of the first of them."""

    count: int
    requests: tuple[str, ...]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON document, format 2. Times in seconds.

    begun_s_ago    of the launch that was begun last, by CLOCK_MONOTONIC; 0 where none has begun
    stall_after_s  the stall time that was applied; None: none was
    learned_gap_s  the longest silence in launches of this layer and size that ended well; None: there was none
    page           every word of the page that is not a slot
    slots          the CTAs that have shown a beat of the launch, those that the causes name first
    context        the launch's shape: layer (its name), experts, top_k, hidden_size, dtype, device, ... as far as known
    events         the watchdog's last ones, oldest first
    left_out       entries that did not fit the record's ceiling, by section

    The last sections are appended later, where they are to be had: `host` (fdmoe_watchdog.host), `expert_tokens`
    (tokens per expert of the batch, by the expert's number), `stacks` (fdmoe_watchdog.stacks), `in_flight`.
    """

    format: int
    at: str
    worker: str
    generation: int
    pid: int
    cause: str
    verdict: str
    launch: int
    layer: int
    tokens: int
    quiet_s: float
    begun_s_ago: float
    stall_after_s: float | None = None
    learned_gap_s: float | None = None
    exit_code: int | None = None
    page: dict[str, Any]
    causes: tuple[CauseRecord, ...] = ()
    slots: tuple[SlotRecord, ...] = ()
    context: dict[str, Any] = {}
    versions: dict[str, str] = {}
    events: tuple[dict[str, Any], ...] = ()
    left_out: dict[str, int] = {}
    host: dict[str, Any] = {}
    expert_tokens: dict[str, int] = {}
    stacks: Stacks | None = None
    in_flight: InFlightRecord | None = None

    @property
    def layer_name(self) -> str:
        name = self.context.get("layer")
        return name if isinstance(name, str) else f"layer {self.layer}"


APPENDED = ("host", "expert_tokens", "stacks", "in_flight")
# what can be added to a saved record: of a process that was still ending the exit code, too
LATER = (*APPENDED, "exit_code")


def record(
    snapshot: Snapshot,
    *,
    worker: str,
    cause: str,
    quiet_s: float,
    now_ns: int,
    at: datetime,
    ages_s: Sequence[float] = (),
    stall_after_s: float | None = None,
    learned_gap_s: float | None = None,
    exit_code: int | None = None,
    context: Mapping[str, object] | None = None,
    events: Iterable[Mapping[str, object]] = (),
    versions: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """The record as a JSON document (class Record). `now_ns` is CLOCK_MONOTONIC, `ages_s` of SlotClock."""
    context = context or {}
    name = context.get("layer")
    verdict = explain(
        snapshot, cause=cause, ages_s=ages_s, exit_code=exit_code, layer=name if isinstance(name, str) else None
    )
    named = {number for each in verdict.causes for number in (each.waiter, *each.ctas)}
    made = Record(
        format=FORMAT,
        at=at.astimezone(UTC).isoformat(timespec="milliseconds"),
        worker=worker,
        generation=snapshot.generation,
        pid=snapshot.pid,
        cause=cause,
        verdict=verdict.words,
        launch=snapshot.begun,
        layer=snapshot.layer,
        tokens=snapshot.tokens,
        quiet_s=round(quiet_s, 6),
        begun_s_ago=round((now_ns - snapshot.begun_at_ns) / 1e9, 6) if snapshot.begun_at_ns else 0.0,
        stall_after_s=_finite(stall_after_s),
        learned_gap_s=_finite(learned_gap_s),
        exit_code=exit_code,
        page=_words(snapshot),
        causes=tuple(
            CauseRecord(kind=each.kind, ctas=each.ctas, waiter=each.waiter, waiting=each.waiting)
            for each in verdict.causes
        ),
        slots=tuple(_slot(cta) for cta in sorted(verdict.ctas, key=lambda cta: (cta.number not in named, cta.number))),
        context=dict(context),
        versions=dict(versions or {}),
        events=tuple(dict(event) for event in events),
    )
    document: dict[str, object] = plain(msgspec.to_builtins(made))
    return {key: value for key, value in document.items() if key not in APPENDED}


def launch_context(layers: Sequence[LayerInfo], index: int, **more: object) -> dict[str, object]:
    """The shape of a launch of layer `index`, as its worker announced it (WorkerReady.layers), and what else is known.

    Before a worker is ready, or for an index that it does not have, only what else is known.
    """
    if not 0 <= index < len(layers):
        return dict(more)
    info = layers[index]
    shape = {
        "layer": info.name, "experts": info.experts, "top_k": info.top_k, "hidden_size": info.hidden_size,
        "dtype": info.dtype,
    }  # fmt: skip
    return shape | more


def plain(value: Any) -> Any:
    """The value as JSON has it; what JSON has no form for becomes its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _words(snapshot: Snapshot) -> dict[str, Any]:
    values = ((field.name, getattr(snapshot, field.name)) for field in dataclasses.fields(snapshot))
    return {
        name: value.name.lower() if isinstance(value, Enum) else plain(value)
        for name, value in values
        if name != "slots"
    }


def _slot(cta: Cta) -> SlotRecord:
    slot = cta.slot
    known_wait = cta.wait_word in Wait._value2member_map_
    return SlotRecord(
        cta=cta.number,
        launch=slot.launch,
        ticket=slot.ticket,
        phase=slot.phase.name.lower() if cta.phase_word in Phase._value2member_map_ else cta.phase_word,
        expert=slot.expert,
        row_tile=slot.row_tile,
        column_tile=slot.column_tile,
        wait=slot.wait.name.lower() if known_wait else cta.wait_word,
        target=slot.target,
        seen=slot.seen,
        items=slot.items,
        state=cta.state,
        unchanged_s=None if cta.age_s is None else round(cta.age_s, 6),
    )


def _finite(seconds: float | None) -> float | None:
    return None if seconds is None or not math.isfinite(seconds) else round(seconds, 6)
