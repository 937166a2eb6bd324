"""The supervisor with children that are no service at all: what it does when nothing works, without torch."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fdmoe_watchdog import messages
from fdmoe_watchdog.http import HttpServer
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.policy import Life, Worker
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings
from fdmoe_watchdog.supervisor import EXIT_RESTART_ME, Supervisor

IDLE = (sys.executable, "-c", "import signal; signal.pause()")
RECOVERY = RecoverySettings(backoff_initial_s=0.01, backoff_max_s=0.02, restart_budget=3)


def plan(directory: Path, *, worker: tuple[str, ...], gateway: tuple[str, ...] = IDLE) -> TreePlan:
    return TreePlan(
        run_dir=directory / "run",
        flight_dir=directory / "flights",
        device="cpu",
        arena_bytes=4096,
        worker_command=worker,
        gateway_command=gateway,
        environment={},
        watchdog=WatchdogSettings(port=0),
        recovery=RECOVERY,
        chaos=False,
        version="1.2.3",
        prepare=lambda _: None,
        announce=lambda *_: None,
    )


def test_workers_that_cannot_be_started_use_up_the_budget_and_the_tree_says_so(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=(str(in_memory / "no-such-program"),)))
    assert supervisor.run() == EXIT_RESTART_ME
    events = supervisor._events.last
    assert [event["event"] for event in events].count("worker_not_started") == 2 + RECOVERY.restart_budget
    assert events[-1]["event"] == "give_up"
    assert events[-1]["reason"] == "no worker is left and the restart budget is gone"
    assert not (in_memory / "run").exists()


def test_workers_that_end_at_once_are_started_again_within_the_budget(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=(sys.executable, "-c", "raise SystemExit(3)")))
    assert supervisor.run() == EXIT_RESTART_ME
    gone = [event for event in supervisor._events.last if event["event"] == "worker_gone"]
    assert [event["exit_code"] for event in gone] == [3] * (2 + RECOVERY.restart_budget)
    registry = supervisor.metrics.registry
    assert registry.get_sample_value("fdmoe_worker_restarts_total", {"reason": "exit"}) == RECOVERY.restart_budget


@pytest.mark.parametrize(("life", "events"), [(Life.READY, ["link_lost"]), (Life.DYING, [])])
def test_a_lost_link_is_news_unless_the_worker_is_being_killed(in_memory: Path, life: Life, events: list[str]) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    (in_memory / "run").mkdir()
    process = supervisor._processes["a"] = supervisor._spawn("a", 1)
    try:
        supervisor._state = replace(supervisor._state, workers={"a": Worker(life, 1), "b": Worker()})
        supervisor._link_lost(messages.LinkLost("a", 1, "peer closed the connection"))
        supervisor._link_lost(messages.LinkLost("a", 2, "of another generation"))
        assert [event["event"] for event in supervisor._events.last] == events
        assert process.cut_off == bool(events)
        assert process.alive, "what becomes of it is the policy's to say"
    finally:
        process.signal(signal.SIGKILL)
        assert process.wait(10)
        process.discard()


def test_a_gateway_that_ends_again_and_again_ends_the_tree(in_memory: Path) -> None:
    gateway = (sys.executable, "-c", "raise SystemExit(4)")
    supervisor = Supervisor(plan(in_memory, worker=IDLE, gateway=gateway))
    assert supervisor.run() == EXIT_RESTART_ME
    assert str(supervisor._events.last[-1]["reason"]).startswith("the gateway ends again and again")
    assert [event["exit_code"] for event in supervisor._events.last if event["event"] == "gateway_exit"] == [4] * 4


def test_a_log_that_nobody_reads_stops_nothing(in_memory: Path) -> None:
    blocked = threading.Event()
    supervisor = Supervisor(plan(in_memory, worker=(str(in_memory / "no-such-program"),)))
    supervisor._events.background.submit(blocked.wait)
    assert supervisor.run() == EXIT_RESTART_ME
    blocked.set()


def test_idle_connections_do_not_use_up_the_servers_threads(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    server = HttpServer("127.0.0.1", 0, supervisor.metrics.registry, lambda: supervisor._view, lambda: True)
    server.start()
    port = int(server.url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    try:
        _wait_until(lambda: _handlers() == 32)
        # the hundredth connection has been refused by then, or would have a handler
        assert idle[-1].recv(1) == b""
        assert _handlers() == 32
    finally:
        for connection in idle:
            connection.close()
    # and when they are gone there is room again

    def status() -> bool:
        with urllib.request.urlopen(f"{server.url}/status", timeout=5) as answer:
            return bool(json.load(answer)["version"] == "1.2.3")

    _wait_until(lambda: _without_refusal(status))
    server.stop()


def _handlers() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def _without_refusal(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        pause.wait(0.01)
