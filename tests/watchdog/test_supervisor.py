"""The supervisor with children that are no service at all: what it does when nothing works, without torch."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import msgspec
import pytest
from waiting import wait_until

from fdmoe_watchdog import events, flight, flights, messages
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.http import HttpServer
from fdmoe_watchdog.pair import Pair
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.policy import Check, Condemned, Ending, Fence, GiveUp, HolderSeen, Life, Seen, Worker
from fdmoe_watchdog.process import Child, HolderProcess, WorkerProcess
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings
from fdmoe_watchdog.status import Event
from fdmoe_watchdog.status_page.words import NAMES
from fdmoe_watchdog.supervisor import EXIT_NODE, EXIT_RESTART_ME, Supervisor
from fdmoe_watchdog.xid import Health

IDLE = (sys.executable, "-c", "import signal; signal.pause()")
# a holder of no weights: it says that it is ready, and stays
HOLDER = """
import os, signal, sys
from pathlib import Path
from fdmoe_watchdog import events, flights, messages
from fdmoe_watchdog.channel import Channel
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
generation = int(options["--generation"])
hello = messages.Hello(messages.PROTOCOL, "weights", options["--name"], generation, os.getpid())
channel = Channel.connect(Path(sys.argv[1]) / "watchdog.sock", hello)
channel.send(messages.WeightsReady(generation, "manifest", 4096))
signal.pause()
"""
# a worker on a device that does not compute
BROKEN = """
import os, sys
from pathlib import Path
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel
options = dict(zip(sys.argv[2::2], sys.argv[3::2]))
hello = messages.Hello(messages.PROTOCOL, "worker", options["--name"], int(options["--generation"]), os.getpid())
channel = Channel.connect(Path(sys.argv[1]) / "watchdog.sock", hello)
channel.send(messages.ChildFailed("the trial kernel gave 0", "device"))
"""
RECOVERY = RecoverySettings(backoff_initial_s=0.01, backoff_max_s=0.02, restart_budget=3)


def plan(
    directory: Path,
    *,
    worker: tuple[str, ...],
    gateway: tuple[str, ...] = IDLE,
    weights: tuple[str, ...] | None = None,
    linger_s: float = 0.1,
) -> TreePlan:
    return TreePlan(
        run_dir=directory / "run",
        flight_dir=directory / "flights",
        devices=("cpu",),
        arena_bytes=4096,
        drain_s=1.0,
        probe=None,
        weights_command=(sys.executable, "-c", HOLDER, str(directory / "run")) if weights is None else weights,
        worker_command=worker,
        gateway_command=gateway,
        environment={},
        watchdog=WatchdogSettings(port=0, give_up_linger_s=linger_s),
        recovery=RECOVERY,
        chaos=False,
        version="1.2.3",
        prepare=lambda _: None,
        announce=lambda *_: None,
    )


def decisions(supervisor: Supervisor) -> list[Event]:
    """What the loop said; that a record is safe on disk comes from a thread, at any time."""
    return [event for event in supervisor._events.last if event["event"] != "flight_record"]


def end_of(supervisor: Supervisor) -> Event:
    """The last decision. After it the gateway goes, and the pages stay up for a while."""
    (end,) = (event for event in supervisor._events.last if event["event"] == "give_up")
    later = decisions(supervisor)[decisions(supervisor).index(end) + 1 :]
    assert {event["event"] for event in later} <= {"gateway_exit", "worker_gone", "weights_gone"}
    return end


def test_workers_that_cannot_be_started_use_up_the_budget_and_the_tree_says_so(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=(str(in_memory / "no-such-program"),)))
    assert supervisor.run() == EXIT_RESTART_ME
    events = decisions(supervisor)
    assert [event["event"] for event in events].count("worker_not_started") == 2 + RECOVERY.restart_budget
    assert end_of(supervisor)["reason"] == "no worker is left and the restart budget is gone"
    assert not (in_memory / "run").exists()


def test_workers_that_end_at_once_are_started_again_within_the_budget(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=(sys.executable, "-c", "raise SystemExit(3)")))
    assert supervisor.run() == EXIT_RESTART_ME
    gone = [event for event in supervisor._events.last if event["event"] == "worker_gone"]
    assert [event["exit_code"] for event in gone] == [3] * (2 + RECOVERY.restart_budget)
    registry = supervisor.metrics.registry
    assert registry.get_sample_value("fdmoe_worker_restarts_total", {"reason": "exit"}) == RECOVERY.restart_budget


def test_a_worker_that_leaves_the_watchdog_is_not_relied_on_until_it_can_be_reaped(in_memory: Path) -> None:
    """A standby has no connection to the gateway that would tell."""
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    (in_memory / "run").mkdir()
    pair = supervisor._pairs[0]
    first, second = (pair._spawn(name, 1) for name in ("a", "b"))
    pair.processes |= {"a": first, "b": second}
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first.channel = Channel(ours)
    try:
        supervisor._receive(first.channel, ChannelClosed("peer closed the connection"))
        assert first.channel is None
        assert [process.seen().cut_off for process in (first, second)] == ["exit", ""]
        assert first.alive
    finally:
        ours.close()
        theirs.close()
        _end(first, second)


BROKE = messages.LinkLost("a", 2, "peer closed the connection")
NO_ROUTE = messages.LinkLost("a", 2, "no connection within 1 s: [Errno 2] No such file or directory", "unreachable")


@pytest.mark.parametrize(
    ("life", "told", "cut_off"),
    [
        (Life.READY, BROKE, "exit"),
        (Life.READY, NO_ROUTE, "unreachable"),
        (Life.ABORTING, NO_ROUTE, "unreachable"),
        (Life.DYING, BROKE, ""),
        (Life.DYING, NO_ROUTE, ""),
        # late, about the one before, or about nobody
        (Life.READY, msgspec.structs.replace(BROKE, generation=1), ""),
        (Life.READY, msgspec.structs.replace(NO_ROUTE, generation=1), ""),
        (Life.READY, msgspec.structs.replace(NO_ROUTE, worker="b"), ""),
    ],
)
def test_a_lost_link_is_news_unless_the_worker_is_being_killed_or_gone(
    in_memory: Path, life: Life, told: messages.LinkLost, cut_off: str
) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    (in_memory / "run").mkdir()
    pair = supervisor._pairs[0]
    process = pair.processes["a"] = pair._spawn("a", 2)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pair.state = replace(pair.state, workers={"a": Worker(life, 2), "b": Worker()})
        supervisor._handle(Channel(ours), told)
        said = [(event["event"], event["worker"], event["reason"]) for event in supervisor._events.last]
        assert said == ([("link_lost", "a", told.reason)] if cut_off else [])
        assert process.seen().cut_off == cut_off
        assert process.alive, "what becomes of it is the policy's to say"
    finally:
        ours.close()
        theirs.close()
        _end(process)


def test_which_requests_a_stalled_worker_had_is_the_gateways_to_say(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    (in_memory / "run").mkdir()
    pair = supervisor._pairs[0]
    process = pair.processes["a"] = pair._spawn("a", 1)
    asked: list[messages.Message] = []
    pair._tell_gateway = asked.append
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gateway = supervisor._gateway.child = Child(IDLE, {})
    gateway.channel = Channel(here)
    try:
        pair._read_pages()
        pair._record(process, "stall")
        assert asked == [messages.AskInFlight("a", 1, 0)]
        said = messages.InFlight("a", 1, 0, 3, ("x", "y"))
        supervisor._handle(gateway.channel, said)
        supervisor._recorder._disk.submit(lambda: None).wait(10)
        assert supervisor._recorder.last is not None
        record = flight.parse(flight.read(supervisor._recorder.last))
        assert record.in_flight is not None
        assert (record.in_flight.count, record.in_flight.requests) == (3, ("x", "y"))
        with pytest.raises(ChannelClosed, match="from somebody who is no gateway"):
            supervisor._handle(Channel(there), said)
    finally:
        _end(process, gateway)
        here.close()
        there.close()


def test_a_gateway_that_ends_again_and_again_ends_the_tree(in_memory: Path) -> None:
    gateway = (sys.executable, "-c", "raise SystemExit(4)")
    supervisor = Supervisor(plan(in_memory, worker=IDLE, gateway=gateway))
    assert supervisor.run() == EXIT_RESTART_ME
    assert str(end_of(supervisor)["reason"]).startswith("the gateway ends again and again")
    assert [event["exit_code"] for event in supervisor._events.last if event["event"] == "gateway_exit"] == [4] * 4
    failures = {
        rung: supervisor.metrics.registry.get_sample_value("fdmoe_recovery_failures_total", {"rung": rung})
        for rung in ("restart", "give_up")
    }
    assert failures == {"restart": 1.0, "give_up": 1.0}


def test_a_holder_that_ends_at_once_uses_up_its_budget_and_no_worker_is_started(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE, weights=(sys.executable, "-c", "raise SystemExit(5)")))
    assert supervisor.run() == EXIT_RESTART_ME
    names = [event["event"] for event in supervisor._events.last]
    assert names.count("weights_gone") == 1 + RECOVERY.restart_budget
    assert "worker_start" not in names
    assert end_of(supervisor)["reason"] == "the weights holder ends again and again, and no worker is left"


def test_a_worker_whose_page_cannot_be_made_takes_no_spare(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    (pair,) = supervisor._pairs
    pair.spares.tend(0.0, quiet=True)
    (spare,) = pair.spares.there
    pair._start("a", 1, "exit")  # there is no run directory
    (event,) = supervisor._events.last
    assert event["event"] == "worker_not_started"
    assert pair.processes == {}
    assert pair.spares.there == [spare]
    (in_memory / "run").mkdir()
    pair._start("a", 2, "exit")
    assert pair.spares.there == []
    assert pair.processes["a"].pid == spare.pid
    _end(pair.processes["a"])


READY, STARTING, BACKOFF, DYING = Life.READY, Life.STARTING, Life.BACKOFF, Life.DYING


@pytest.mark.parametrize(
    ("holder", "workers", "quiet"),
    [
        (READY, (READY, READY), True),
        (READY, (READY, BACKOFF), False),
        (READY, (READY, STARTING), False),
        # who waits for weights may find a spare once they are there
        (STARTING, (BACKOFF, BACKOFF), True),
        (STARTING, (READY, BACKOFF), True),
        (STARTING, (READY, STARTING), False),
        (BACKOFF, (BACKOFF, BACKOFF), False),
        (STARTING, (BACKOFF, DYING), False),
    ],
)
def test_spares_are_started_in_nobodys_way(
    in_memory: Path, holder: Life, workers: tuple[Life, Life], quiet: bool
) -> None:
    (pair,) = Supervisor(plan(in_memory, worker=IDLE))._pairs
    lives = dict(zip(pair.workers, workers, strict=True))
    pair.state = replace(
        pair.state,
        holder=replace(pair.state.holder, life=holder),
        workers={name: replace(worker, life=lives[name]) for name, worker in pair.state.workers.items()},
    )
    assert pair._is_quiet() == quiet


def test_a_device_that_gives_up_is_left_out_and_the_other_is_not(in_memory: Path) -> None:
    supervisor = Supervisor(replace(plan(in_memory, worker=IDLE), devices=("cpu:0", "cpu:1")))
    (in_memory / "run").mkdir()
    first, second = supervisor._pairs
    assert [(*pair.workers, pair.holder_name) for pair in supervisor._pairs] == [
        ("a0", "b0", "weights0"), ("a1", "b1", "weights1"),
    ]  # fmt: skip
    process = first.processes["a0"] = first._spawn("a0", 1)
    first.spares.tend(0.0, quiet=True)
    (spare,) = first.spares.there
    first.ended = GiveUp("Xid 79", Ending.NODE, "drain_node")
    supervisor._leave_out_what_ended()
    assert process.wait(10)
    assert spare.wait(10)
    first.reap()
    assert first.processes == {}
    assert first.spares.there == []
    assert {worker.life for worker in first.state.workers.values()} == {Life.ABSENT}
    assert supervisor._exit is None
    out = supervisor._events.last[0]
    assert (out["event"], out["device"], out["node_action"]) == ("device_out", "cpu:0", "drain_node")
    second.ended = GiveUp("Xid 48", Ending.NODE, "reset_gpu")
    supervisor._leave_out_what_ended()
    given_up = [event["exit_code"] for event in supervisor._events.last if event["event"] == "give_up"]
    assert given_up == [EXIT_NODE]
    assert supervisor._linger_until is not None


def test_a_start_that_may_bring_one_device_back_is_asked_for(in_memory: Path) -> None:
    supervisor = Supervisor(replace(plan(in_memory, worker=IDLE), devices=("cpu:0", "cpu:1")))
    first, second = supervisor._pairs
    first.ended = GiveUp("no worker is left", Ending.RESTART_ME, "")
    second.ended = GiveUp("Xid 48", Ending.NODE, "reset_gpu")
    supervisor._leave_out_what_ended()
    last = supervisor._events.last[-1]
    assert (last["event"], last["exit_code"], last["node_action"]) == ("give_up", EXIT_RESTART_ME, "")


def test_a_node_that_must_be_looked_at_is_told_of_until_somebody_says_stop(in_memory: Path) -> None:
    broken = (sys.executable, "-c", BROKEN, str(in_memory / "run"))
    supervisor = Supervisor(plan(in_memory, worker=broken, linger_s=30.0))
    said: dict[str, object] = {}

    def look() -> None:
        try:
            wait_until(lambda: supervisor._linger_until is not None, 60)
            wait_until(lambda: {worker.state for worker in supervisor._view.workers} == {"absent"})
            with urllib.request.urlopen(f"{supervisor._http_url}/status", timeout=5) as answer:
                said.update(json.load(answer))
            with urllib.request.urlopen(f"{supervisor._http_url}/metrics", timeout=5) as answer:
                said["metrics"] = answer.read().decode()
            with urllib.request.urlopen(f"{supervisor._http_url}/livez", timeout=5) as answer:
                said["live"] = answer.read()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: supervisor._exit is not None)
            # an impatient second one changes nothing: do not restart me here
            os.kill(os.getpid(), signal.SIGTERM)

    # the second signal may come when the tree has given its handlers back
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    thread = threading.Thread(target=look)
    thread.start()
    try:
        assert supervisor.run() == EXIT_NODE
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert said["path"] == "down"
    assert said["live"] == b"ok\n"
    events = said["events"]
    assert isinstance(events, list)
    give_up = next(event for event in events if event["event"] == "give_up")
    assert (give_up["exit_code"], give_up["node_action"]) == (EXIT_NODE, "reset_gpu")
    lines = str(said["metrics"]).splitlines()
    assert 'fdmoe_recovery_failures_total{rung="give_up"} 1.0' in lines
    assert 'fdmoe_worker_state{device="cpu",state="ready",worker="a"} 0.0' in lines
    assert 'fdmoe_path_active{device="cpu",path="fused"} 0.0' in lines


def test_last_words_are_heard_although_the_end_is_seen_first(in_memory: Path) -> None:
    pair = Supervisor(plan(in_memory, worker=IDLE))._pairs[0]
    (in_memory / "run").mkdir()
    process = pair.processes["a"] = pair._spawn("a", 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process.channel = Channel(ours)
    speaker = Channel(theirs)
    speaker.send(messages.ChildFailed("there is no layer 99", "settings"))
    speaker.close()
    process.signal(signal.SIGKILL)
    assert process.wait(10)
    pair._hear_out()
    assert process.seen().failed == ("there is no layer 99", "settings")
    process.channel.close()
    process.discard()


def test_what_a_worker_says_of_its_pace_is_an_event_with_figures_and_reaches_the_ladder_once(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    (in_memory / "run").mkdir()
    pair = supervisor._pairs[0]
    process = pair.processes["a"] = pair._spawn("a", 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process.channel = Channel(ours)
    try:
        pair.handle(process.channel, messages.Compared("m/layers.0", 12, "fused", 1e-6, 2e-6, ok=True, suspect=True))
        pair.handle(
            process.channel, messages.Slow("m/layers.0", 12, "fused", 3_000_000, 900_000, 300_000, 850_000)
        )  # fmt: skip
        seen = process.seen()
        assert (seen.checks, seen.slow) == ((Check(16, True, suspect=True),), True)
        assert (process.seen().checks, process.seen().slow) == ((), False)
        (event,) = supervisor._events.last
        assert {name: value for name, value in event.items() if name != "at"} == {
            "event": "slow", "device": "cpu", "worker": "a", "layer": "m/layers.0", "bucket": 16, "served": "fused",
            "fused_s": 0.003, "baseline_s": 0.0009, "usual_fused_s": 0.0003, "usual_baseline_s": 0.00085,
        }  # fmt: skip
        found = supervisor.metrics.registry.get_sample_value("fdmoe_shadow_checks_total", {"result": "ok"})
        assert found == 1, "its numbers are right"
        excused = messages.Slow("m/layers.0", 12, "fused", 3_000_000, 2_900_000, 300_000, 850_000, excused=True)
        pair.handle(process.channel, excused)
        assert not process.seen().slow, "the baseline would be no faster"
        told = list(supervisor._events.last)[-1]
        assert (told["event"], told["baseline_s"]) == ("slow_excused", 0.0029)
    finally:
        process.signal(signal.SIGKILL)
        assert process.wait(10)
        process.channel.close()
        theirs.close()
        process.discard()


class AskedDevice:
    """In a probe's place: what the device holds, and how it is."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.health_now = Health("ok")

    def memory_is_back(self, name: str, pid: int, reaped_ns: int, others: Iterable[int]) -> bool:
        assert (name, reaped_ns > 0) == ("cpu", True)
        assert pid not in others
        return pid not in self.held

    def health(self, name: str, since_ns: int) -> Health:
        assert (name, since_ns > 0) == ("cpu", True)
        return self.health_now


def test_what_the_device_says_of_memory_and_of_itself_reaches_the_ladder(in_memory: Path) -> None:
    pair = Supervisor(plan(in_memory, worker=IDLE))._pairs[0]
    (in_memory / "run").mkdir()
    probe = AskedDevice()
    assert pair._see("a", probe).memory_back, "it has never run"
    process = pair.processes["a"] = pair._spawn("a", 1)
    probe.held.add(process.pid)
    process.signal(signal.SIGKILL)
    assert process.wait(10)
    pair.reap()
    assert not pair._see("a", probe).memory_back
    probe.held.clear()
    assert pair._see("a", probe) == Seen(alive=False)
    assert pair._see("a", None) == Seen(alive=False)
    assert pair._doom(probe) is None
    probe.health_now = Health("fail_closed", "Xid 79: it fell off the bus", "drain_node")
    assert pair._doom(probe) == Condemned("Xid 79: it fell off the bus", "drain_node")


def test_a_holder_that_is_held_while_it_loads_is_not_held_by_the_watchdogs_own_sleep(in_memory: Path) -> None:
    (in_memory / "run").mkdir()
    pair = Supervisor(plan(in_memory, worker=IDLE, weights=(*IDLE,)))._pairs[0]
    holder = pair.holder = pair._spawn_holder(1)
    try:
        holder.signal(signal.SIGSTOP)
        wait_until(lambda: holder.stopped)
        start = time.monotonic()
        held_s = [pair._see_holder(start + passed_s, None).held_s for passed_s in (0.0, 0.005, 12.005, 12.01, 12.02)]
        assert held_s == pytest.approx([0, 0.005, 0.03, 0.035, 0.045]), "of the 12 s five poll intervals count"
    finally:
        holder.signal(signal.SIGKILL)
        assert holder.wait(10)


def test_a_holder_that_stands_still_is_told_of_and_one_whose_memory_failed_is_spoilt(in_memory: Path) -> None:
    (in_memory / "run").mkdir()
    supervisor = Supervisor(plan(in_memory, worker=IDLE, weights=(*IDLE,)))
    pair, probe = supervisor._pairs[0], AskedDevice()
    holder = pair.holder = pair._spawn_holder(1)
    try:
        holder.ready = messages.WeightsReady(1, "manifest", 1)
        holder.signal(signal.SIGSTOP)
        wait_until(lambda: holder.stopped)
        start = time.monotonic()
        seen = [pair._see_holder(start + turn * 0.02, probe) for turn in range(20)]
        assert set(seen) == {HolderSeen(alive=True, ready=True)}, "it is served from all the same"
        holder.signal(signal.SIGCONT)
        wait_until(lambda: not holder.stopped)
        pair._see_holder(start + 1.0, None)
        assert [event["event"] for event in supervisor._events.last] == ["weights_stopped"], "it may be about to end"
        pair._see_holder(start + 2.0, None)
        assert [event["event"] for event in supervisor._events.last] == ["weights_stopped", "weights_resumed"]
        probe.health_now = Health("reload_weights", "Xid 94: memory failed")
        assert not pair._see_holder(start + 2.1, probe).spoilt, "it may have been anybody's memory"
        pair._ended_ns = time.monotonic_ns()
        assert pair._see_holder(start + 2.2, probe) == HolderSeen(alive=True, ready=True, spoilt=True)
        assert pair._doom(probe) is None
    finally:
        holder.signal(signal.SIGKILL)
        assert holder.wait(10)


def test_weights_that_a_worker_says_have_changed_are_spoilt_and_those_that_follow_are_not(in_memory: Path) -> None:
    pair, holder, worker = _of_a_pair(in_memory)
    try:
        holder.ready = messages.WeightsReady(1, "manifest", 1)
        life = replace(pair.state.workers["a"], life=Life.READY, generation=1, weights=1)
        pair.state = replace(pair.state, workers={**pair.state.workers, "a": life})
        assert not pair._see_holder(time.monotonic(), None).spoilt
        for blame in ("unknown", "device", "settings"):
            worker.failed = ("it broke", blame)
            assert not pair._see_holder(time.monotonic(), None).spoilt
        worker.failed = ("the baseline of m differs", "weights")
        assert pair._see_holder(time.monotonic(), None).spoilt
        holder.ready = None
        assert not pair._see_holder(time.monotonic(), None).spoilt, "they are being loaded"
        holder.ready, holder.generation = messages.WeightsReady(2, "manifest", 1), 2
        assert not pair._see_holder(time.monotonic(), None).spoilt, "it had the weights of another holder"
    finally:
        _end(holder, worker)


@pytest.mark.parametrize(("batches", "credit_s"), [(0, 0.0), (1, 0.03)])
def test_one_that_serves_counts_as_held_for_as_long_as_it_was_seen_to_be(
    in_memory: Path, batches: int, credit_s: float
) -> None:
    """An idle one is silent for a tenth of a second at a time; one that has a batch is not silent for the time that it
    takes until somebody looks."""
    (in_memory / "run").mkdir()
    process = Supervisor(plan(in_memory, worker=IDLE))._pairs[0]._spawn("a", 1)
    try:
        process.ready = messages.WorkerReady(1, (), 8)
        snapshot = process.read_page()
        assert snapshot is not None
        process.tracker.read(replace(snapshot, submitted=snapshot.answered + batches), 0.0)
        process.tracker.untouched_s = 0.2
        assert process._held_s() == 0
        process.signal(signal.SIGSTOP)
        wait_until(lambda: process.stopped)
        assert process._held_s() == pytest.approx(credit_s)
        process.tracker._clock_s += 0.04
        assert process._held_s() == pytest.approx(0.04 + credit_s)
    finally:
        _end(process)


def test_one_that_sleeps_over_its_batch_and_waits_for_nothing_counts_as_blocked(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_memory / "run").mkdir()
    process = Supervisor(plan(in_memory, worker=IDLE))._pairs[0]._spawn("a", 1)
    try:
        wait_until(lambda: process.asleep)
        snapshot = process.read_page()
        assert snapshot is not None
        tracker, has_one = process.tracker, replace(snapshot, submitted=snapshot.answered + 1)

        all_asleep = True
        monkeypatch.setattr(type(process), "asleep", property(lambda _: all_asleep))

        def blocked_s(*, still_s: float, clock_s: float, host_waits: bool = False) -> float:
            tracker._last = replace(has_one, host_beats=9 if host_waits else 8)
            tracker.host_still_s, tracker._clock_s = still_s, clock_s
            return process.seen().blocked_s

        assert blocked_s(still_s=0.02, clock_s=1.0) == 0, "not looked at yet"
        assert blocked_s(still_s=0.035, clock_s=1.015) == 0, "from now on"
        assert [blocked_s(still_s=0.04 + 0.005 * turn, clock_s=1.02 + 0.005 * turn) for turn in range(8)] == [
            0, *(pytest.approx(0.01 + 0.005 * turn) for turn in range(7)),
        ], "all others sleep as well, at a second look"  # fmt: skip
        all_asleep = False
        assert blocked_s(still_s=0.08, clock_s=1.06) == 0, "it may wait for one that runs"
        all_asleep = True
        assert blocked_s(still_s=0.085, clock_s=1.065) == 0
        assert blocked_s(still_s=0.09, clock_s=1.07) == pytest.approx(0.055), "which woke for a moment"
        assert blocked_s(still_s=0.095, clock_s=1.075, host_waits=True) == 0, "it is at the device"
        assert [blocked_s(still_s=0.1 + 0.005 * turn, clock_s=1.08 + 0.005 * turn) for turn in range(3)] == [
            0, 0, pytest.approx(0.01),
        ], "and anew"  # fmt: skip
        process.signal(signal.SIGSTOP)
        wait_until(lambda: process.stopped)
        assert blocked_s(still_s=0.2, clock_s=1.2) == 0, "that is another thing"
    finally:
        _end(process)


def test_the_silence_of_who_is_frozen_is_a_time_to_detection_as_well(in_memory: Path) -> None:
    supervisor, pair, process = _of_one(in_memory)
    registry = supervisor.metrics.registry

    def detected() -> tuple[float | None, float | None]:
        name, labels = "fdmoe_stall_detection_seconds", {"cause": "frozen"}
        return registry.get_sample_value(f"{name}_count", labels), registry.get_sample_value(f"{name}_sum", labels)

    try:
        process.tracker.untouched_s = 0.5
        pair._act(Fence("a", 1, "frozen"), 0.0)
        assert detected() == (0, 0), "one that starts shows no beats"
        process.ready = messages.WorkerReady(1, (), 8)
        pair._act(Fence("a", 1, "exit"), 0.0)
        assert detected() == (0, 0), "nobody waited for that"
        pair._act(Fence("a", 1, "frozen"), 0.0)
        assert detected() == (1, 0.5)
    finally:
        _end(process)


def test_who_says_why_it_cannot_start_is_not_told_of_as_one_too_slow_to_start(in_memory: Path) -> None:
    supervisor, pair, process = _of_one(in_memory)
    registry = supervisor.metrics.registry

    def stalls() -> tuple[float | None, int]:
        events = [event["event"] for event in supervisor._events.last]
        return registry.get_sample_value("fdmoe_stalls_total", {"cause": "startup"}), events.count("stall")

    try:
        pair._read_pages()
        process.failed = ("no room", "unknown")
        pair._act(Fence("a", 1, "startup"), 0.0)
        assert stalls() == (0, 0)
        assert supervisor._recorder._disk.submit(lambda: None).wait(10)
        assert supervisor._recorder.last is not None
        assert flight.parse(flight.read(supervisor._recorder.last)).verdict.startswith("the worker could not start; ")
        process.failed = None
        pair._act(Fence("a", 1, "startup"), 0.0)
        assert stalls() == (1, 1)
        assert supervisor._recorder._disk.submit(lambda: None).wait(10)
    finally:
        _end(process)


def test_counts_of_who_took_a_batch_over_are_of_the_record_of_its_fence_or_left_out(in_memory: Path) -> None:
    (in_memory / "run").mkdir()
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    recorder, process = supervisor._recorder, supervisor._pairs[0]._spawn("a", 1)

    def told(tokens: int, *counts: int, layer: str = "m/layers.0") -> dict[str, int]:
        recorder.expert_tokens(messages.ExpertTokens("a", 1, None, layer, tokens, counts))
        assert recorder._disk.submit(lambda: None).wait(10)
        assert recorder.last is not None
        return flight.parse(flight.read(recorder.last)).expert_tokens

    try:
        process.ready = messages.WorkerReady(1, (messages.LayerInfo("m/layers.0", 64, "FP32", 2, 1),), 8)
        snapshot = process.read_page()
        assert snapshot is not None
        process.tracker.read(replace(snapshot, tokens=3), 0.0)
        recorder.record(process, "exit", "cpu")
        assert told(3, 1, 2) == {}, "it was not fenced: what is replayed is another affair"
        for tokens, layer in ((4, "m/layers.0"), (3, "m/layers.1")):
            recorder.fenced(process)
            assert told(tokens, 1, 2, layer=layer) == {}
        recorder.fenced(process)
        assert told(3, 1, 2) == {"0": 1, "1": 2}
        assert told(3, 3, 0) == {"0": 1, "1": 2}, "once"
    finally:
        _end(process)


@pytest.mark.parametrize(
    ("name", "process"),
    [
        ("weights_gone", "weights"), ("gateway_exit", "gateway"), ("probe_exit", "probe"), ("probe_silent", "probe"),
        ("annotator_exit", "annotator"),
    ],
)  # fmt: skip
def test_ends_of_processes_that_are_no_workers_are_counted(in_memory: Path, name: str, process: str) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    assert name in NAMES
    supervisor._events.add(name)
    supervisor._events.add("worker_gone")
    registry = supervisor.metrics.registry
    counts = {
        each: registry.get_sample_value("fdmoe_process_ends_total", {"process": each})
        for each in ("weights", "gateway", "probe", "annotator")
    }
    assert counts == {each: float(each == process) for each in counts}


def test_jumps_of_the_wall_clock_change_no_decision(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days forward, days back: a worker that is started, serves and is killed has the life that it always has."""
    jumps = itertools.cycle((86400.0, -3 * 86400.0, 0.0, 40 * 365 * 86400.0))

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime(2030, 1, 1, tzinfo=tz) + timedelta(seconds=next(jumps))

    monkeypatch.setattr(time, "time", lambda: 1.9e9 + next(jumps))
    for module in (events, flights):
        monkeypatch.setattr(module, "datetime", Jumping)
    supervisor = Supervisor(plan(in_memory, worker=(sys.executable, "-c", "raise SystemExit(3)")))
    assert supervisor.run() == EXIT_RESTART_ME
    names = [event["event"] for event in decisions(supervisor)]
    assert names.count("worker_start") == names.count("worker_gone") == 2 + RECOVERY.restart_budget
    assert end_of(supervisor)["exit_code"] == EXIT_RESTART_ME


def test_idle_connections_do_not_use_up_the_servers_threads(in_memory: Path) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    scrape = Exposition(supervisor.metrics.registry)
    server = HttpServer(
        "127.0.0.1", 0, scrape, lambda: supervisor._view, lambda: supervisor._live, lambda: True
    )  # fmt: skip
    server.start()
    port = int(server.url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    try:
        wait_until(lambda: _handlers() == 32)
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

    wait_until(lambda: _without_refusal(status))
    server.stop()


def test_a_connection_for_which_there_is_no_thread_gives_its_place_back(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    scrape = Exposition(supervisor.metrics.registry)
    server = HttpServer(
        "127.0.0.1", 0, scrape, lambda: supervisor._view, lambda: supervisor._live, lambda: True
    )  # fmt: skip
    server.start()
    start, refused = threading.Thread.start, []

    def no_thread(thread: threading.Thread) -> None:
        if "process_request" in thread.name and len(refused) < 40:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_thread)

    def live() -> bool:
        with urllib.request.urlopen(f"{server.url}/livez", timeout=5) as answer:
            return bool(answer.read() == b"ok\n")

    wait_until(lambda: _without_refusal(live), 30)
    assert len(refused) == 40
    server.stop()


def _handlers() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def _without_refusal(ask: Callable[[], bool]) -> bool:
    try:
        return ask()
    except OSError:
        return False


def test_who_begins_to_end_is_heard_out_and_cut_off_before_it_can_be_reaped(in_memory: Path) -> None:
    pair, holder, worker = _of_a_pair(in_memory)
    ends = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    try:
        said = messages.encode(messages.ChildFailed("there is no layer 99", "settings"))
        for child, (ours, theirs) in zip((holder, worker), ends, strict=True):
            theirs.send(said)
            child.channel = Channel(ours)
        pair._hear_out()
        assert (holder.cut_off, worker.cut_off, worker.failed) == ("", "", None)
        for child in (holder, worker):
            child.signal(signal.SIGKILL)
        wait_until(lambda: holder.ending and worker.ending)
        pair._hear_out()
        assert (holder.cut_off, worker.cut_off) == ("exit", "exit")
        assert holder.failed == worker.failed == ("there is no layer 99", "settings")
        assert (holder.exit_code, worker.exit_code) == (None, None), "nobody has reaped them"
    finally:
        _end(holder, worker)
        for pair_of_ends in ends:
            for end in pair_of_ends:
                end.close()


def test_who_ends_before_anybody_has_heard_of_it_is_reaped_first(in_memory: Path) -> None:
    """Its connection may wait to be accepted, and say why."""
    pair, holder, worker = _of_a_pair(in_memory)
    try:
        for child in (holder, worker):
            child.signal(signal.SIGKILL)
        wait_until(lambda: holder.ending and worker.ending)
        pair._hear_out()
        assert (holder.cut_off, worker.cut_off) == ("", "")
    finally:
        _end(holder, worker)


def test_the_exit_code_of_who_was_still_ending_comes_into_its_record(
    in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_memory / "run").mkdir()
    supervisor = Supervisor(plan(in_memory, worker=IDLE))
    recorder, worker = supervisor._recorder, supervisor._pairs[0]._spawn("a", 1)
    try:
        snapshot = worker.page.snapshot()
        worker.tracker.read(snapshot, 0.0)
        worker.signal(signal.SIGKILL)
        wait_until(lambda: worker.ending)
        with monkeypatch.context() as still:
            # a small process has ended as soon as it begins to
            still.setattr(WorkerProcess, "exit_code", None)
            recorder.record(worker, "exit", "cpu")
            recorder.reaped(worker)
            recorder.wait(10)
        assert recorder.last is not None
        record = flight.read(recorder.last)
        assert (record["exit_code"], str(record["verdict"]).split(";")[0]) == (None, "the worker's process is ending")
        assert worker.wait(10)
        recorder.reaped(worker)
        wait_until(lambda: flight.read(recorder.last)["exit_code"] == -signal.SIGKILL)
    finally:
        _end(worker)


def _of_a_pair(directory: Path) -> tuple[Pair, HolderProcess, WorkerProcess]:
    """A pair with its first holder, and worker a."""
    (directory / "run").mkdir()
    pair = Supervisor(plan(directory, worker=IDLE, weights=(*IDLE,)))._pairs[0]
    holder = pair.holder = pair._spawn_holder(1)
    worker = pair.processes["a"] = pair._spawn("a", 1)
    return pair, holder, worker


def _of_one(directory: Path) -> tuple[Supervisor, Pair, WorkerProcess]:
    """Its pair has worker a alone."""
    (directory / "run").mkdir()
    supervisor = Supervisor(plan(directory, worker=IDLE))
    pair = supervisor._pairs[0]
    process = pair.processes["a"] = pair._spawn("a", 1)
    return supervisor, pair, process


def _end(*children: Child) -> None:
    for child in children:
        child.signal(signal.SIGKILL)
        assert child.wait(10)
        if isinstance(child, WorkerProcess):
            child.discard()
