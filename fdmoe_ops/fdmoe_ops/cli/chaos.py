"""`fdmoe chaos`: break the next fused launch on purpose, and watch the tree go to the baseline and come back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from fdmoe_ops.cli.client import UNREACHABLE, WatchdogClient, WatchdogUnreachable
from fdmoe_ops.cli.flags import fail
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.cli.status import event_line
from fdmoe_ops.settings import run_directory

# 20 events a second are told apart by an eye; the watchdog needs well under a millisecond for an answer
POLL_INTERVAL_S = 0.05
REFUSED = 1


class Fault(StrEnum):
    STALL = "stall"
    ENDLESS = "endless"


def chaos(
    loaded: Loaded,
    fault: Annotated[
        Fault,
        typer.Argument(
            help="stall: the kernel waits for what never comes, and can be aborted. endless: it must be killed."
        ),
    ],
    wait_s: Annotated[
        float | None,
        typer.Option("--wait", metavar="SECONDS", min=0, help="Show events until the fused path serves again."),
    ] = None,
) -> None:
    """Give the next fused launch a fault (needs `fdmoe serve --enable-chaos`, and requests, so that there is one)."""
    try:
        with WatchdogClient(run_directory(loaded.settings)) as watchdog:
            before = watchdog.status()["events"]
            reply = watchdog.arm(fault.value)
            if not reply.ok:
                raise fail(f"the watchdog refused: {reply.reason}", REFUSED)
            typer.echo(f"armed: {fault.value}")
            if wait_s is not None and (problem := wait_for_return(watchdog, before, wait_s)):
                raise fail(problem, REFUSED)
    except WatchdogUnreachable as error:
        raise fail(str(error), UNREACHABLE) from error


def wait_for_return(watchdog: WatchdogClient, before: list[dict[str, Any]], wait_s: float) -> str:
    """Print each event after those of `before` until the path has left fused and is back. What is wrong, or ""."""
    started = time.monotonic()
    seen, has_left = before, False
    for document in _statuses(watchdog, started + wait_s):
        for event in new_events(seen, document["events"]):
            typer.echo(event_line(event))
            # from the event, too: with short pauses the path is back before the next reading
            has_left = has_left or (event["event"] == "path" and event["previous"] == "fused")
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


def new_events(seen: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was appended to a log since `seen` was read; the log keeps its newest entries only."""
    for known in range(min(len(seen), len(events)), 0, -1):
        if seen[-known:] == events[:known]:
            return events[known:]
    return events


def _statuses(watchdog: WatchdogClient, deadline: float) -> Iterator[dict[str, Any]]:
    while time.monotonic() < deadline:
        yield watchdog.status()
        time.sleep(POLL_INTERVAL_S)
