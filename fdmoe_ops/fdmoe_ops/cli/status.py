"""`fdmoe status`: what the watchdog knows, as tables of 80 columns or as its JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fdmoe_ops.cli.flags import fail
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.cli.tables import plain_table
from fdmoe_ops.client import UNREACHABLE, WatchdogClient, WatchdogUnreachable
from fdmoe_ops.settings import run_directory

EVENTS_SHOWN = 10
PATH_STYLES = {"fused": "green", "shadow": "yellow", "baseline": "yellow"}


def status(
    loaded: Loaded,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole document as JSON.")] = False,
) -> None:
    """Show the path, the workers, their beats and the last events of a running tree."""
    try:
        with WatchdogClient(run_directory(loaded.settings)) as watchdog:
            document = watchdog.status()
    except WatchdogUnreachable as error:
        raise fail(str(error), UNREACHABLE) from error
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        Console(highlight=False).print(render(document))
        # on a line of its own, which no table folds: it is there to be copied
        typer.echo(f"last flight: {document['last_flight'] or 'none'}")


def render(document: dict[str, Any]) -> RenderableType:
    """The document for people. Raises KeyError when it is not one of fdmoe_watchdog.status."""
    parts: list[RenderableType] = [
        _summary(document),
        _devices(document["devices"], document["workers"]),
        _workers(document["workers"]),
    ]
    if events := document["events"][-EVENTS_SHOWN:]:
        parts.append(_events(events))
    return Group(*parts)


def event_line(event: dict[str, Any]) -> str:
    """ "12:00:01.250  stalled  worker=a launch=7": the time of day, the name, the details."""
    return f"{_time_of_day(event['at'])}  {event['event']}  {_details(event)}".rstrip()


def _summary(document: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    path = document["path"]
    gateway = document["gateway"]
    rows: list[tuple[str, str | Text]] = [
        ("path", Text(path, style=PATH_STYLES.get(path, ""))),
        ("gateway", f"{gateway['url'] or 'not listening'} (pid {gateway['pid'] or 'none'})"),
        ("up for", _duration(document["uptime_s"])),
        ("version", document["version"]),
    ]
    if document["draining"]:
        rows.append(("draining", Text("told to stop: what is in flight is finished", style="yellow")))
    if document["chaos"]:
        rows.append(("chaos", Text("enabled: kernels may be broken on purpose", style="yellow")))
    for name, value in rows:
        table.add_row(name, value if isinstance(value, Text) else Text(value))
    return table


def _devices(devices: Iterable[dict[str, Any]], workers: list[dict[str, Any]]) -> Table:
    table = _table("devices", ("name", "path", "active", "weights"), ("pid", "MiB", "workers' MiB", "restarts left"))
    for device in devices:
        holder = device["holder"]
        path = "down" if device["active"] is None else device["path"]
        memory = [worker["gpu_memory_bytes"] for worker in workers if worker["device"] == device["name"]]
        table.add_row(
            Text(device["name"]), Text(path, style=PATH_STYLES.get(path, "")), Text(device["active"] or "none"),
            Text(holder["state"]), Text(_number(holder["pid"] or None)), Text(_mib(holder["size_bytes"])),
            Text(" + ".join(_mib(size) for size in memory if size is not None) or "-"),
            Text(str(device["restarts_left"])),
        )  # fmt: skip
    return table


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f}"


def _table(title: str, texts: Iterable[str], numbers: Iterable[str]) -> Table:
    table = plain_table(title)
    for heading in texts:
        table.add_column(heading)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _workers(workers: Iterable[dict[str, Any]]) -> Table:
    table = _table("workers", ("name", "state", "path", "stage"), ("gen.", "pid", "beat age", "fused", "base"))
    for worker in workers:
        batches = worker["batches"]
        # between launches there is no beat to wait for
        age = f"{worker['heartbeat_age_s']:.3f} s" if worker["outstanding"] else "idle"
        texts = [worker["name"], worker["state"], worker["path"], worker["stage"]]
        numbers = [worker["generation"], worker["pid"] or None, age, batches.get("fused"), batches.get("baseline")]
        # a worker that is not running has no pid (0) and no page to read batches from
        table.add_row(*(Text(str(value)) for value in texts), *(Text(_number(value)) for value in numbers))
    return table


def _number(value: int | str | None) -> str:
    return "-" if value is None else str(value)


def _events(events: list[dict[str, Any]]) -> Table:
    table = plain_table(f"last {len(events)} events")
    table.add_column("time", no_wrap=True)
    table.add_column("event")
    table.add_column("details", overflow="fold")
    for event in events:
        table.add_row(*(Text(text) for text in (_time_of_day(event["at"]), event["event"], _details(event))))
    return table


def _details(event: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in event.items() if key not in ("at", "event"))


def _time_of_day(iso: str) -> str:
    """The time of an ISO timestamp, to the millisecond, in the zone it was written in."""
    return iso.partition("T")[2][:12].rstrip("Z") or iso


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes} min" if minutes else ""]
    return " ".join([part for part in parts if part] + [f"{rest} s"])
