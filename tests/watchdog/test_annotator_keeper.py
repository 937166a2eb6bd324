"""The annotator's process as the watchdog keeps it: told of decisions, never waited for, replaced when it is gone."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from fdmoe_watchdog import annotator_keeper
from fdmoe_watchdog.annotator_keeper import AnnotatorKeeper, AnnotatorPlan
from fdmoe_watchdog.channel import Channel
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.messages import Annotated, Happened
from fdmoe_watchdog.metrics import Metrics
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings
from fdmoe_watchdog.supervisor import EXIT_RESTART_ME, Supervisor

IDLE = (sys.executable, "-c", "import signal; signal.pause()")
# writes what it is told into a file, a line each, and counts it as sent; ends when it is told to and all is read
SCRIBE = """
import json, os, select, signal, socket, sys
from pathlib import Path
from fdmoe_watchdog.channel import Channel
from fdmoe_watchdog.messages import PROTOCOL, Annotated, Hello
end, waker = socket.socketpair()
waker.setblocking(False)
signal.set_wakeup_fd(waker.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
hello = Hello(PROTOCOL, "annotator", "annotator", 0, os.getpid())
channel = Channel.connect(Path(sys.argv[1]) / "watchdog.sock", hello)
with open(sys.argv[2], "a") as file:
    while True:
        ready = select.select([channel, end], [], [])[0]
        while (message := channel.receive()) is not None:
            channel.send(Annotated(sent=1))
            print(json.dumps(message.event), file=file, flush=True)
        if end in ready:
            break
"""
# ends at once, but not before the scribe has written something
ENDING = """
import os, sys, time
while not (os.path.exists(sys.argv[1]) and os.path.getsize(sys.argv[1])):
    time.sleep(0.01)
"""
RECOVERY = RecoverySettings(backoff_initial_s=0.01, backoff_max_s=0.02, restart_budget=3)


def value(registry: CollectorRegistry, result: str) -> float | None:
    return registry.get_sample_value("fdmoe_grafana_annotations_total", {"result": result})


def tree(directory: Path, *, worker: tuple[str, ...], annotator: tuple[str, ...], events: frozenset[str]) -> TreePlan:
    return TreePlan(
        run_dir=directory / "run",
        flight_dir=directory / "flights",
        devices=("cpu",),
        arena_bytes=4096,
        drain_s=1.0,
        probe=None,
        weights_command=worker,
        worker_command=worker,
        gateway_command=IDLE,
        environment={},
        watchdog=WatchdogSettings(port=0, give_up_linger_s=0.1),
        recovery=RECOVERY,
        chaos=False,
        version="1.2.3",
        prepare=lambda _: None,
        announce=lambda *_: None,
        annotator=AnnotatorPlan(annotator, {}, events),
    )


def test_it_is_told_of_what_it_asked_for_up_to_the_last_word(in_memory: Path) -> None:
    told = in_memory / "told"
    scribe = (sys.executable, "-P", "-c", SCRIBE, str(in_memory / "run"), str(told))
    ending = (sys.executable, "-c", ENDING, str(told))
    plan = tree(in_memory, worker=ending, annotator=scribe, events=frozenset({"weights_start", "give_up"}))
    supervisor = Supervisor(plan)
    assert supervisor.run() == EXIT_RESTART_ME
    events = [json.loads(line) for line in told.read_text().splitlines()]
    assert [event["event"] for event in events] == ["weights_start"] * 4 + ["give_up"]
    assert [event.get("device") for event in events] == ["cpu"] * 4 + [None]
    assert events[-1] in supervisor._events.last
    sent = value(supervisor.metrics.registry, "sent")
    assert sent is not None
    assert 0 < sent <= 5, "the answer to the last words comes when nobody listens any more"
    assert value(supervisor.metrics.registry, "failed") == 0


def test_one_that_cannot_be_started_costs_nothing_but_its_events(in_memory: Path) -> None:
    missing = (str(in_memory / "no-such-program"),)
    plan = tree(in_memory, worker=missing, annotator=missing, events=frozenset({"give_up"}))
    supervisor = Supervisor(plan)
    assert supervisor.run() == EXIT_RESTART_ME
    names = [event["event"] for event in supervisor._events.last]
    assert "annotator_not_started" in names
    assert "give_up" in names


def test_nobody_else_may_say_what_became_of_annotations(in_memory: Path) -> None:
    plan = tree(in_memory, worker=IDLE, annotator=IDLE, events=frozenset())
    supervisor = Supervisor(plan)
    ours, _theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pytest.raises(ConnectionError, match="an annotator's message from somebody who is none"):
        supervisor._handle(Channel(ours), Annotated(sent=1))


class Kept:
    def __init__(self, recovery: RecoverySettings = RECOVERY) -> None:
        self.events = EventLog()
        self.metrics = Metrics(lambda: None, Ledger(lambda *_: None), "1.2.3", ())  # type: ignore[arg-type, return-value]
        self.dropped: list[Channel] = []
        plan = AnnotatorPlan(IDLE, {}, frozenset({"fence"}))
        self.keeper = AnnotatorKeeper(plan, recovery, self.events, self.metrics, self.drop, 0.0)

    def drop(self, channel: Channel) -> None:
        self.dropped.append(channel)
        assert self.keeper.child is not None
        self.keeper.child.channel = None

    def names(self) -> list[object]:
        return [event["event"] for event in self.events.last]

    def connect(self) -> Channel:
        """The annotator's end of its channel."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        assert self.keeper.child is not None
        self.keeper.child.channel = Channel(ours)
        return Channel(theirs)


@pytest.fixture
def kept() -> Iterator[Kept]:
    kept = Kept()
    yield kept
    if kept.keeper.child is not None:
        kept.keeper.child.signal(signal.SIGKILL)
        assert kept.keeper.child.wait(10)


def test_what_happens_before_it_is_there_waits_and_the_rest_is_counted(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotator_keeper, "_WAITING", 3)
    for number in range(5):
        kept.events.add("fence", worker=f"a{number}")
        kept.events.add("kill", worker=f"a{number}")
    assert value(kept.metrics.registry, "dropped") == 2
    kept.keeper.tend(0.0)
    channel = kept.connect()
    kept.keeper.tend(0.005)
    told = [channel.receive() for _ in range(4)]
    assert [message.event["worker"] if isinstance(message, Happened) else None for message in told] == [
        "a0", "a1", "a2", None,
    ]  # fmt: skip


def test_one_that_does_not_read_is_replaced(kept: Kept) -> None:
    kept.keeper.tend(0.0)
    child = kept.keeper.child
    assert child is not None
    deaf = kept.connect()  # held, and never read
    for _ in range(5000):
        kept.events.add("fence", worker="a", generation=1, cause="exit")
        kept.keeper.tell()
        if kept.dropped:
            break
    assert deaf.fileno() > 0
    assert kept.names()[-1] == "annotator_deaf"
    assert child.wait(10)
    assert child.exit_code == -signal.SIGKILL
    kept.keeper.tend(1.0)
    assert kept.names()[-1] == "annotator_exit"
    assert kept.keeper.child is None, "after a pause, as everybody"
    kept.keeper.tend(1.02)
    assert kept.keeper.child is not None
    channel = kept.connect()
    kept.keeper.tell()
    assert isinstance(channel.receive(), Happened), "the event that the deaf one did not take"


def test_pauses_grow_and_do_not_end(kept: Kept) -> None:
    starts, now = [], 0.0
    while len(starts) < 7:
        kept.keeper.tend(now)
        if (child := kept.keeper.child) is not None:
            starts.append(now)
            child.signal(signal.SIGKILL)
            assert child.wait(10)
        else:
            now = kept.keeper._start_at
    assert [round(after - before, 3) for before, after in itertools.pairwise(starts)] == [
        0.01, 0.02, 0.02, 0.02, 0.02, 0.02,
    ]  # fmt: skip


def test_what_it_says_is_counted(kept: Kept) -> None:
    registry = kept.metrics.registry
    assert [value(registry, result) for result in ("sent", "failed", "dropped")] == [0, 0, 0]
    kept.keeper.heard(Annotated(sent=2, failed=1, dropped=4))
    kept.keeper.heard(Annotated(sent=1))
    assert [value(registry, result) for result in ("sent", "failed", "dropped")] == [3, 1, 4]
