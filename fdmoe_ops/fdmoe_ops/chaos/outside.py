"""Faults that are done to a running tree from outside: to its watchdog's process, beside it on its device, at its door.

Only to a tree that says that it may be broken (`--enable-chaos`), and that is asked each time.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from fdmoe_ops.chaos.door import VISITS
from fdmoe_ops.chaos.plays import PLAYS
from fdmoe_ops.chaos.target import Target
from fdmoe_ops.client import WatchdogClient

STOP_S = 2.0  # how long the watchdog is stopped
NEIGHBOURS_S = 5.0


class Refused(RuntimeError):
    """It cannot be done to this tree, or not now; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of it, in words; `unfair` are those endings that no client at the door may have."""

    words: str
    unfair: tuple[str, ...] = ()


def inject(name: str, watchdog: WatchdogClient) -> Outcome:
    """Returns when it is over. Raises Refused and WatchdogUnreachable."""
    status = watchdog.status()
    if not status["chaos"]:
        raise Refused("the watchdog refused: chaos is off in this tree; start it with --enable-chaos")
    match name:
        case "stop-watchdog":
            return _signalled(stop, _process(watchdog))
        case "kill-watchdog":
            return _signalled(_kill, _process(watchdog))
        case "busy-neighbour":
            return _share(status["devices"][0]["name"])
        case _:
            return _visit(name, status["gateway"])


def _process(watchdog: WatchdogClient) -> int:
    # to the kernel 0 is our own process group
    if watchdog.pid == 0:
        raise Refused("the watchdog's process is none that this one sees; run the command in its PID namespace")
    # the kernel drops what a namespace's first process is sent from inside
    if watchdog.pid == 1:
        raise Refused(
            "the watchdog is the first process of this PID namespace, which no signal from inside it stops or kills; "
            "send it from the host, or delete the pod"
        )
    return watchdog.pid


def _signalled(play: Callable[[int], Outcome], pid: int) -> Outcome:
    try:
        return play(pid)
    except (PermissionError, ProcessLookupError) as error:
        raise Refused(f"the watchdog's process {pid} cannot be signalled: {error}") from error


def stop(pid: int) -> Outcome:
    """For STOP_S. Raises OSError."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(STOP_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    return Outcome(f"process {pid} was stopped for {STOP_S:g} s")


def _kill(pid: int) -> Outcome:
    os.kill(pid, signal.SIGKILL)
    return Outcome(
        f"process {pid} was killed, and its children end with it; whoever started it starts it again: systemd, the "
        "kubelet, or you with `fdmoe serve`"
    )


def _share(device: str) -> Outcome:
    # torch comes with it, and the other faults do without
    from fdmoe_kernels.bench.neighbour import NeighbourError
    from fdmoe_ops.chaos.neighbours import busy_neighbours

    try:
        with busy_neighbours(device, NEIGHBOURS_S):
            time.sleep(NEIGHBOURS_S)
    except NeighbourError as error:
        raise Refused(f"nobody works beside the tree on {device}: {error}") from error
    return Outcome(f"{device} was shared for {NEIGHBOURS_S:g} s")


def _visit(name: str, gateway: Mapping[str, Any]) -> Outcome:
    if not gateway["url"]:
        raise Refused("the gateway does not listen now")
    url = urlsplit(gateway["url"])
    assert url.hostname, gateway
    assert url.port, gateway
    address = url.hostname, url.port
    try:
        ended = VISITS[name](address, Target.of_gateway(address))
    except OSError as error:
        raise Refused(f"nobody is let in at {gateway['url']}: {error}") from error
    words = ", ".join(f"{ending} {count}" for ending, count in sorted(ended.items()))
    return Outcome(words, tuple(PLAYS[name].unfair(ended)))
