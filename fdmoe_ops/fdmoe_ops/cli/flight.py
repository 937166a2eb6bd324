"""`fdmoe flight list|show`: what was recorded when a worker failed, in plain words first, or as its JSON document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fdmoe_ops.cli.flags import MISUSE, fail
from fdmoe_ops.cli.flight_page import printable, render
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.cli.tables import plain_table
from fdmoe_ops.settings import flight_directory
from fdmoe_watchdog import flight

FLIGHT_OPTIONS = ("flight_dir",)
UNREADABLE = 1  # the exit code for a record that is there and cannot be shown
COLUMN_GAP = 2
COLUMNS = (
    ("id", 6),
    ("time", 14),
    ("worker", 8),
    ("cause", 8),
    ("layer", 10),
    ("tokens", 6),
)  # and their widths at most
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_records(loaded: Loaded, as_json: AsJson = False) -> None:
    """List the flight records, newest last. A record is saved whenever a worker stalls, hangs or ends."""
    directory = flight_directory(loaded.settings)
    rows = [_summary(path) for path in _stored(directory)]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    elif rows:
        console = Console(highlight=False)
        console.print(_table(rows, console.width))
        for row in rows:
            if "unreadable" in row:
                typer.echo(printable(f"unreadable: {row['file']}: {row['unreadable']}"))
    else:
        typer.echo(f"no flight records in {directory}")


def show_record(
    loaded: Loaded,
    record: Annotated[str, typer.Argument(metavar="ID|latest", help="An id of `fdmoe flight list`, or latest.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole document as JSON.")] = False,
) -> None:
    """Show one flight record: who waited for what, the CTAs concerned, the last events, the worker's stacks."""
    path = _find(flight_directory(loaded.settings), record)
    try:
        document = flight.read(path)
        # a document that is printed is one of ours, too
        parsed = flight.parse(document)
    except (OSError, flight.RecordError) as error:
        raise fail(f"{path}: {_reason(error)}", UNREADABLE) from error
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        Console(highlight=False).print(render(parsed))
        # on lines of their own, which no table folds: they are there to be copied
        if parsed.stacks and parsed.stacks.python:
            typer.echo(f"\nPython stacks\n{printable(parsed.stacks.python.rstrip(), lines=True)}")
        typer.echo(f"\nrecord: {path}")


def _stored(directory: Path) -> list[Path]:
    try:
        return flight.stored(directory)
    except OSError as error:
        raise fail(f"flight_dir is {directory}: {error.strerror or error}", MISUSE) from error


def _find(directory: Path, record: str) -> Path:
    paths = _stored(directory)
    if record == "latest" and paths:
        return paths[-1]
    for path in paths:
        if record in (_id(path), path.name):
            return path
    if not paths:
        raise fail(f"no flight records in {directory}", MISUSE)
    ids = f"from {_id(paths[0])} to {_id(paths[-1])}"
    raise fail(f"record is {record!r}; allowed: latest, or an id of `fdmoe flight list`, {ids}", MISUSE)


def _id(path: Path) -> str:
    """The record's number in its directory; the file's name for one that has none."""
    return str(flight.sequence(path) or path.name)


def _summary(path: Path) -> dict[str, Any]:
    summary: dict[str, Any] = {"id": _id(path), "file": path.name}
    try:
        record = flight.parse(flight.read(path))
    except (OSError, flight.RecordError) as error:
        return summary | {"unreadable": _reason(error)}
    return summary | {
        "at": record.at, "worker": record.worker, "generation": record.generation, "cause": record.cause,
        "layer": record.layer_name, "tokens": record.tokens, "verdict": record.verdict,
    }  # fmt: skip


def _reason(error: OSError | flight.RecordError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _table(rows: list[dict[str, Any]], line_width: int) -> Table:
    """The verdict is cut to what is left of the line; whatever else is longer than its column, too."""
    table = plain_table()
    lines = [[printable(cell) for cell in _cells(row)] for row in rows]
    widths = [
        min(max(len(heading), *(len(line[index]) for line in lines)), at_most)
        for index, (heading, at_most) in enumerate(COLUMNS)
    ]
    widths.append(max(line_width - sum(widths) - COLUMN_GAP * len(COLUMNS), len("verdict")))
    for heading, width in zip([*(heading for heading, _ in COLUMNS), "verdict"], widths, strict=True):
        table.add_column(heading, no_wrap=True, width=width)
    for line in lines:
        cells = [Text(cell) for cell in line]
        for cell, width in zip(cells, widths, strict=True):
            cell.truncate(width, overflow="ellipsis")
        table.add_row(*cells)
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    if "unreadable" in row:
        return [row["id"] if row["id"] != row["file"] else "-", "-", "-", "-", "-", "-", "unreadable, see below"]
    # the day and the time, to the second; the layer without its checkpoint
    time = row["at"][5:19].replace("T", " ")
    layer = row["layer"].rpartition("/")[2]
    return [row["id"], time, row["worker"], row["cause"], layer, str(row["tokens"]), row["verdict"]]
