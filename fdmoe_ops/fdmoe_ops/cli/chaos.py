"""`fdmoe chaos`: break a running tree on purpose, and watch it recover."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fdmoe_ops.chaos.catalogue import FAULTS, FaultInfo, Means
from fdmoe_ops.chaos.events import new_events
from fdmoe_ops.cli.flags import EPILOG, MISUSE, fail, with_settings
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.cli.status import event_line
from fdmoe_ops.cli.tables import plain_table
from fdmoe_ops.client import RUN_DIRECTORY_OPTIONS, UNREACHABLE, WatchdogClient, WatchdogUnreachable
from fdmoe_ops.settings import run_directory

# 20 events a second are told apart by an eye; the watchdog needs well under a millisecond for an answer
POLL_INTERVAL_S = 0.05
REFUSED = 1

Wait = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", min=0, help="Show events until the fused path serves again."),
]

app = typer.Typer(
    help="Break a running tree on purpose (needs `fdmoe serve --enable-chaos`).", no_args_is_help=True
)  # fmt: skip


def _command(fault: FaultInfo) -> Callable[..., None]:
    inject = _from_outside if fault.means is Means.OUTSIDE else _by_the_watchdog

    def command(loaded: Loaded, wait_s: Wait = None) -> None:
        if wait_s is not None and fault.means is Means.OUTSIDE:
            raise fail(f"--wait cannot be given: {fault.name} {_no_return(fault)}", MISUSE)
        try:
            with WatchdogClient(run_directory(loaded.settings)) as watchdog:
                before = watchdog.status()["events"]
                inject(fault, watchdog)
                if wait_s is not None and (problem := wait_for_return(watchdog, before, wait_s)):
                    raise fail(problem, REFUSED)
        except WatchdogUnreachable as error:
            raise fail(str(error), UNREACHABLE) from error

    return command


def _no_return(fault: FaultInfo) -> str:
    """Why nobody can wait until the fused path is back."""
    if fault.name == "kill-watchdog":
        return "ends the tree, and with it whoever would be asked; `fdmoe status` answers once it was started again"
    return "leaves the fused path in service, and ends when it is over"


def _by_the_watchdog(fault: FaultInfo, watchdog: WatchdogClient) -> None:
    reply = watchdog.arm(fault.name)
    if not reply.ok:
        raise fail(f"the watchdog refused: {reply.reason}", REFUSED)
    typer.echo(f"{fault.name}: {reply.reason}" if reply.reason else fault.name)


def _from_outside(fault: FaultInfo, watchdog: WatchdogClient) -> None:
    # asyncio comes with it, and the other commands do without
    from fdmoe_ops.chaos import outside

    try:
        outcome = outside.inject(fault.name, watchdog)
    except outside.Refused as error:
        raise fail(str(error), REFUSED) from error
    typer.echo(f"{fault.name}: {outcome.words}")
    if outcome.unfair:
        raise fail(f"no client may end so: {', '.join(outcome.unfair)}", REFUSED)


for _fault in FAULTS:
    if _fault.means is not Means.GAME_DAY:
        app.command(_fault.name, help=f"{_fault.what} {_fault.follows}", epilog=EPILOG)(
            with_settings(_command(_fault), only=RUN_DIRECTORY_OPTIONS)
        )


@app.command("list")
def show() -> None:
    """Show every fault, what it is, and how it is injected."""
    table = plain_table("faults")
    for heading in ("name", "where", "what"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for fault in FAULTS:
        where = fault.place.name.lower() + (", game day" if fault.means is Means.GAME_DAY else "")
        table.add_row(Text(fault.name), Text(where), Text(fault.what))
    Console(highlight=False).print(table)


@app.command("game-day", epilog=EPILOG)
@with_settings
def game_day(
    loaded: Loaded,
    report: Annotated[Path, typer.Option("--report", metavar="DIR", help="Where the report is written.")],
    abortable: Annotated[int, typer.Option(min=1, help="Repetitions of faults that cost no process.")] = 50,
    others: Annotated[int, typer.Option(min=1, help="Repetitions of all others.")] = 10,
    only: Annotated[str, typer.Option(metavar="A,B", help="These faults alone, by name.")] = "",
    clients: Annotated[int, typer.Option(min=1, help="Clients that send without a pause.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the largest request.")] = 16,
    commit: Annotated[str, typer.Option(help="Written into each row.")] = "unknown",
) -> None:
    """Start a tree of its own, inject every fault under load, compare every answer, and write a report.

    Ends with 1 if a request was lost or wrong, or a fault did not come to what it must come to.
    """
    # torch and numpy come with it, and the other commands do without
    from fdmoe_ops.chaos.day import Day

    day = Day(loaded.settings, report, commit, clients=clients, max_tokens=max_tokens)
    names = day.names([name for name in only.split(",") if name])
    if not day.play(names, abortable=abortable, others=others):
        raise fail(f"not every fault came to what it must come to: {report}/game-day.html says which", REFUSED)


@app.command(epilog=EPILOG)
@with_settings
def soak(
    loaded: Loaded,
    report: Annotated[Path, typer.Option("--report", metavar="DIR", help="Where soak.csv is written.")],
    minutes: Annotated[float, typer.Option(min=0.1, help="How long, in minutes; all phases are played once.")] = 8.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the largest request to begin with.")] = 16,
    commit: Annotated[str, typer.Option(help="Written into the row.")] = "unknown",
) -> None:
    """Start a tree of its own, break nothing, and count the false alarms under a load that changes all the time.

    Ends with 1 if there was one, or a request was lost or wrong.
    """
    from fdmoe_ops.chaos.day import Day

    if not Day(loaded.settings, report, commit, clients=0, max_tokens=max_tokens).soak(minutes):
        raise fail(f"the soak was not clean: {report}/soak.csv", REFUSED)


def wait_for_return(watchdog: WatchdogClient, before: list[dict[str, Any]], wait_s: float) -> str:
    """Print each event after those of `before` until the path has left fused and is back. What is wrong, or ""."""
    started = time.monotonic()
    seen, has_left = before, False
    for document in _statuses(watchdog, started + wait_s):
        for event in new_events(seen, document["events"]):
            typer.echo(event_line(event))
            # from the event, too: with short pauses the path is back before the next reading
            has_left = has_left or (event["event"] == "path_switch" and event["from"] == "fused")
        seen = document["events"]
        has_left = has_left or document["path"] != "fused"
        if has_left and document["path"] == "fused":
            typer.echo(f"fused again, {time.monotonic() - started:.1f} s after the fault was armed")
            return ""
    if has_left:
        return f"the path is not fused again after {wait_s:g} s"
    return (
        f"the path stayed fused for {wait_s:g} s; the fault strikes at the next fused launch, and stays armed until "
        "then: are there requests?"
    )


def _statuses(watchdog: WatchdogClient, deadline: float) -> Iterator[dict[str, Any]]:
    while time.monotonic() < deadline:
        yield watchdog.status()
        time.sleep(POLL_INTERVAL_S)
