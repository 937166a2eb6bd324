"""One flight record as a page of 80 columns: plain words first, then the CTAs concerned, events and stacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fdmoe_ops.cli.tables import plain_table
from fdmoe_watchdog.flight import Record
from fdmoe_watchdog.flight_record import SlotRecord
from fdmoe_watchdog.flight_verdict import ended_by
from fdmoe_watchdog.threads import ThreadFacts

CTAS_SHOWN = 12
EVENTS_SHOWN = 10
THREADS_SHOWN = 8
EXPERTS_SHOWN = 6


def render(record: Record) -> RenderableType:
    """The record for people."""
    parts: list[RenderableType] = [Text(printable(record.verdict), style="bold"), Text(), _facts(record)]
    if record.slots:
        parts += [_ctas(record), Text(_others(record))]
    if record.events:
        parts.append(_events(record.events[-EVENTS_SHOWN:]))
    if record.stacks and record.stacks.process:
        parts.append(_threads(record.stacks.process.threads, record.stacks.process.count))
    return Group(*parts)


def printable(text: str, *, lines: bool = False) -> str:
    """What a file says, safe for a terminal: nothing in it moves the cursor."""
    return "".join(char if char.isprintable() or (lines and char == "\n") else "?" for char in text)


def _facts(record: Record) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _fact_rows(record):
        if value:
            table.add_row(name, Text(printable(value)))
    return table


def _fact_rows(record: Record) -> Iterator[tuple[str, str]]:
    context = {key: value for key, value in record.context.items() if key != "layer"}
    yield "time", record.at
    yield "cause", record.cause
    yield "worker", f"{record.worker}, generation {record.generation}, pid {record.pid}"
    yield "ended", "" if record.exit_code is None else ended_by(record.exit_code)
    yield "launch", f"{record.launch}, begun {record.begun_s_ago:g} s before" if record.launch else "none"
    yield "layer", f"{record.layer_name}, {record.tokens} tokens"
    yield "shape", _pairs(context)
    yield "silence", _silence(record)
    yield "requests", _requests(record)
    yield "experts", _experts(record.expert_tokens)
    yield "page", _pairs({key: value for key, value in record.page.items() if key not in _SHOWN_ELSEWHERE})
    yield "host", str(record.host.get("load", ""))
    yield "versions", _pairs(record.versions)
    yield "left out", _pairs(record.left_out)


_SHOWN_ELSEWHERE = ("pid", "generation", "begun", "begun_at_ns", "tokens", "layer")


def _silence(record: Record) -> str:
    words = f"{record.quiet_s:g} s without a beat"
    if record.stall_after_s is not None:
        words += f"; the stall time was {record.stall_after_s:g} s"
    if record.learned_gap_s is not None:
        words += f", the longest silence of a good launch {record.learned_gap_s:g} s"
    return words


def _requests(record: Record) -> str:
    flight = record.in_flight
    if flight is None:
        return ""
    more = flight.count - len(flight.requests)
    return f"{flight.count} in flight: {', '.join(flight.requests)}{f' and {more} more' if more else ''}".rstrip(": ")


def _experts(tokens: Mapping[str, int]) -> str:
    busiest = sorted(tokens.items(), key=lambda pair: -pair[1])[:EXPERTS_SHOWN]
    if not busiest:
        return ""
    idle = sum(count == 0 for count in tokens.values())
    named = ", ".join(f"{expert}: {count}" for expert, count in busiest)
    return f"{named} tokens (the busiest of {len(tokens)}; {idle} have none)"


def _ctas(record: Record) -> Table:
    table = plain_table("CTAs concerned")
    for heading, justify in (
        ("CTA", "right"), ("state", "left"), ("phase", "left"), ("expert", "right"), ("tile", "left"),
        ("waits for", "left"), ("seen", "right"), ("unchanged", "right"),
    ):  # fmt: skip
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for slot in _concerned(record):
        waits = slot.state == "waiting"
        cells = [
            str(slot.cta), slot.state, str(slot.phase), str(slot.expert), f"({slot.row_tile}, {slot.column_tile})",
            str(slot.wait).replace("_", " ") if waits else "-", f"{slot.seen}/{slot.target}" if waits else "-",
            "-" if slot.unchanged_s is None else f"{slot.unchanged_s:.3f} s",
        ]  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _concerned(record: Record) -> list[SlotRecord]:
    """Those that the causes name, and those that no kernel's words fit."""
    named = {number for cause in record.causes for number in (cause.waiter, *cause.ctas)}
    return [slot for slot in record.slots if slot.cta in named or slot.state == "unreadable"][:CTAS_SHOWN]


def _others(record: Record) -> str:
    shown = {slot.cta for slot in _concerned(record)}
    others = Counter(
        f"{slot.state} in {slot.phase}" if slot.state != "left" else "left"
        for slot in record.slots
        if slot.cta not in shown
    )
    counts = ", ".join(f"{number} {what}" for what, number in others.most_common(CTAS_SHOWN))
    return printable(f"the others: {counts}" if counts else "there are no others")


def _events(events: Iterable[Mapping[str, Any]]) -> Table:
    table = plain_table("last events")
    table.add_column("time", no_wrap=True, max_width=12)
    table.add_column("event", overflow="fold")
    table.add_column("details", overflow="fold")
    for event in events:
        time = str(event.get("at", "")).partition("T")[2][:12]
        details = _pairs({key: value for key, value in event.items() if key not in ("at", "event")})
        table.add_row(*(Text(printable(cell)) for cell in (time, str(event.get("event", "")), details)))
    return table


def _threads(threads: tuple[ThreadFacts, ...], count: int) -> Table:
    """The main thread, and those that have used the most time."""
    table = plain_table(f"threads, {min(count, THREADS_SHOWN)} of {count}")
    for heading in ("thread", "name", "state", "in the kernel"):
        table.add_column(heading, overflow="fold")
    for heading in ("user", "system", "switches"):
        table.add_column(heading, justify="right")
    used = sorted(threads[1:], key=lambda thread: -(thread.user_s or 0.0) - (thread.system_s or 0.0))
    for thread in (*threads[:1], *used[: THREADS_SHOWN - 1]):
        cells = [
            str(thread.tid), thread.name, thread.state, thread.waits_in or "-",
            *("-" if spent is None else f"{spent:.2f} s" for spent in (thread.user_s, thread.system_s)),
            "-" if thread.voluntary_switches is None else str(thread.voluntary_switches),
        ]  # fmt: skip
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _pairs(mapping: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in mapping.items())
