"""A game day: every fault of the catalogue, again and again, under load, with every answer compared.

Times of one repetition:

    detect   from the fault to the watchdog's decision; of a stalled kernel, from its launch
    answer   the longest that a client waited for a request that was in flight between the fault and one second after
             the decision
    restart  from a worker's fence until its successor is ready: the kill, the device's memory, the pause and the start;
             where the whole tree starts again, from the start of the worker's process
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fdmoe_ops.chaos import door, outside
from fdmoe_ops.chaos.catalogue import FAULTS, Means
from fdmoe_ops.chaos.events import ALARMS, Event, EventTail, monotonic_of, restarts_s
from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.neighbours import busy_neighbours
from fdmoe_ops.chaos.plays import CORRUPT_COMPARE_RATIO, PLAYS, Group, Play
from fdmoe_ops.chaos.result import Result
from fdmoe_ops.chaos.shortage import hoard, limit, mapped_bytes
from fdmoe_ops.chaos.tree import Tree, spares_of
from fdmoe_ops.chaos.wall_clock import WallClock, can_be_set
from fdmoe_ops.client import WatchdogClient, WatchdogUnreachable
from fdmoe_ops.devices import are_cpu

_DEADLINE_S = 120.0
# a fault that nobody decides about has this long to do harm
_WATCHED_S = 2.0
_AFTER_DECISION_S = 1.0
# smaller than a beat page and a flight record
_TINY_BYTES = 1024
_HOUR_S = 3600
# pauses that only protect from relapses would make the day long, and so would the deadline of a client's body; the
# other deadlines are those that are shipped
FLAGS = (
    "--enable-chaos", "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2",
    "--recovery-restart-budget=1000", "--recovery-backoff-initial-s=0.05", "--recovery-backoff-max-s=0.2",
    "--gateway-upload-timeout-s=2",
)  # fmt: skip
# and that of a host thread, which is the answer deadline on the CPU
_CPU_FLAGS = ("--recovery-host-deadline-s=3",)
_OWN_TREE = {
    # the fault lasts for as many launches as twice those between two comparisons
    "corrupt": (f"--recovery-compare-ratio={CORRUPT_COMPARE_RATIO}",),
    "kill-watchdog": (),
    "failing-worker": ("--recovery-restart-budget=2",),
    "shared-memory-full": (),
    "disk-full": (),
    "wall-clock": (),
}


@dataclass(frozen=True)
class Plan:
    """`flags` for `fdmoe serve`; `device`: the first that it serves on; `repetitions` of each group of faults;
    `compared`: by the flags, each answer is before it leaves."""

    flags: tuple[str, ...]
    device: str
    pool: Pool
    clients: int
    repetitions: dict[Group, int]
    compared: bool = False

    def result(self, name: str) -> Result:
        """With nothing in it yet."""
        return Result(PLAYS[name], clients=self.clients, compared=self.compared)


def playable() -> list[str]:
    """The names of the faults that can be played on this machine, in the catalogue's order."""
    return [fault.name for fault in FAULTS if fault.name != "wall-clock" or can_be_set()]


def run(plan: Plan, names: list[str]) -> Iterator[Result]:
    """Play the faults: in one tree those that it survives, then the others in trees of their own."""
    shared = [name for name in names if name not in _OWN_TREE]
    if shared:
        with _stage(plan) as stage:
            for name in shared:
                yield stage.play(plan.result(name), plan.repetitions[PLAYS[name].group])
    for name in names:
        if name in _OWN_TREE:
            yield _play_alone(plan, plan.result(name))


def _play_alone(plan: Plan, result: Result) -> Result:
    """In a tree of its own, or in one for each repetition where the tree is not whole afterwards."""
    repetitions = plan.repetitions[result.play.group]
    at_once = repetitions if result.play.final_path == "fused" else 1
    while result.repetitions < repetitions and not result.problem:
        with contextlib.ExitStack() as stack:
            clock = stack.enter_context(WallClock()) if result.play.name == "wall-clock" else None
            stage = stack.enter_context(_stage(plan, _OWN_TREE[result.play.name], clock))
            stage.play(result, at_once)
    return result


@contextlib.contextmanager
def _stage(plan: Plan, flags: tuple[str, ...] = (), clock: WallClock | None = None) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="fdmoe-game-day-") as directory:
        flags = (*FLAGS, *(_CPU_FLAGS if are_cpu((plan.device,)) else ()), *plan.flags, *flags)
        tree = Tree(Path(directory), *flags, environment=clock.environment if clock else None)
        try:
            tree.wait_until_ready()
            tail = EventTail(tree)
            try:
                yield Stage(plan, tree, tail, clock)
            finally:
                tail.close()
        finally:
            tree.end()


@dataclass
class Stage:
    """`clock`: the tree's own wall clock, where it has one. `struck_at`: when the last fault began, for those that take
    a while to prepare."""

    plan: Plan
    tree: Tree
    tail: EventTail
    clock: WallClock | None = None
    struck_at: float = 0.0

    def play(self, result: Result, repetitions: int) -> Result:
        started = time.monotonic()
        with Load(self.tree.gateway_address, self.plan.pool, self.plan.clients) as load:
            for _ in range(repetitions):
                try:
                    self._repeat(result.play, load, result)
                except (AssertionError, TimeoutError, OSError, WatchdogUnreachable) as error:
                    result.problem = f"{type(error).__name__}: {error}"
                    break
                result.repetitions += 1
        result.seconds += time.monotonic() - started
        result.sent += load.sent
        with contextlib.suppress(WatchdogUnreachable):
            result.final_path = self.tree.status()["path"]
        return result

    def _repeat(self, play: Play, load: Load, result: Result) -> None:
        self._until("the fused path", lambda: self._whole("fused"))
        self._until_answered(load, "fused")
        if play.served:
            self._until(f"{play.served} fused batches", lambda: self._fused_batches() >= play.served)
        result.begun.append(len(result.sent) + len(load.sent))
        mark, started = self.tail.mark(), time.monotonic()
        self.struck_at = started
        undo = self._inject(play.name, result)
        started = self.struck_at
        # some take a while to be done
        decided = max(started + _WATCHED_S, time.monotonic())
        then = play.then
        try:
            event = self._decision(play, mark, undo) if play.decision else None
            if event is not None:
                # a wall clock that jumped may say that it is still to come
                decided = min(monotonic_of(event), time.monotonic())
                result.detect_s.append(_detection_s(play, event, decided - started))
            elif play.decision:
                decided, then = time.monotonic(), ()
                result.notes["excused"] = result.notes.get("excused", 0) + 1
            for name in then:
                self.tail.wait(mark, (name,), _DEADLINE_S)
            # the harm of a fault, if it does any, shows in this time; none of it is a guess about who is how fast
            time.sleep(max(0.0, decided + _AFTER_DECISION_S - time.monotonic()))
        finally:
            undo()
        self._until(f"the {play.final_path} path", lambda: self._whole(play.final_path))
        self._until_answered(load, play.final_path)
        happened = self.tail.since(mark)
        result.restart_s += restarts_s(happened)
        result.mismatches += sum(event["event"] == "shadow_mismatch" for event in happened)
        if play.quiet:
            alarms = {event["event"] for event in happened} & set(ALARMS)
            assert not alarms, f"false alarms: {', '.join(sorted(alarms))}"
        waits = [
            sent.end - sent.start
            for sent in list(load.sent)
            if sent.end > started and sent.start < decided + _AFTER_DECISION_S
        ]
        result.answer_s.append(max(waits))

    def _decision(self, play: Play, mark: int, undo: Callable[[], None]) -> Event | None:
        """None where the service has said why it did not notice, for as long as the fault lasted."""
        event = self.tail.wait(mark, (*play.decision, *((play.excuse,) if play.excuse else ())), _DEADLINE_S)
        if event["event"] in play.decision:
            return event
        undo()
        with contextlib.suppress(TimeoutError):
            return self.tail.wait(mark, play.decision, _AFTER_DECISION_S)
        return None

    # ---- the faults

    def _inject(self, name: str, result: Result) -> Callable[[], None]:
        """Do it; returns what undoes it, where that is needed."""
        fault = next(fault for fault in FAULTS if fault.name == name)
        if fault.means is Means.WATCHDOG:
            stopped, mark = self._pids(name), self.tail.mark()
            self._ask(name)
            if name == "stop-holder":
                with contextlib.ExitStack() as stack:
                    stack.callback(_continue, stopped)
                    # a worker that starts meanwhile maps what it holds all the same
                    self._ask("kill-standby")
                    stack.pop_all()
            if name in ("slow", "corrupt"):
                served = self._fused_batches()
                return lambda: self._outlive(mark, served)
            return lambda: _continue(stopped)
        if name in door.VISITS:
            ended = self._visit(name)
            for outcome, count in ended.items():
                result.notes[outcome] = result.notes.get(outcome, 0) + count
            unfair = result.play.unfair(ended)
            assert not unfair, f"no client may end so: {', '.join(unfair)}"
            return _nothing
        return getattr(self, "_" + name.replace("-", "_"))()  # type: ignore[no-any-return]

    def _visit(self, name: str) -> Counter[str]:
        host, _, port = self.tree.gateway_address.partition(":")
        return door.VISITS[name]((host, int(port)), self.plan.pool.target)

    def _ask(self, name: str) -> None:
        """Until it is done: between two looks the path may have changed."""

        def done() -> bool:
            with WatchdogClient(self.tree.run_dir) as client:
                return client.arm(name).ok

        self._until(f"a chance for {name}", done)

    def _outlive(self, mark: int, served: int) -> None:
        """Until all launches that were armed after the mark have been: what is left of them would strike again."""
        launches = self.tail.wait(mark, ("fault_armed",), _DEADLINE_S)["launches"]
        self._until(f"the end of {launches} launches", lambda: self._fused_batches() >= served + launches)

    def _pids(self, name: str) -> list[int]:
        """The processes that this fault only stops and that nobody will kill."""
        holders = (device["holder"]["pid"] for device in self.tree.status()["devices"])
        return list(holders) if name == "stop-holder" else []

    def _stop_watchdog(self) -> Callable[[], None]:
        outside.stop(self.tree.process.pid)
        return _nothing

    def _kill_watchdog(self) -> Callable[[], None]:
        self.tree.process.kill()
        self.tree.process.wait()
        self.tree.start()
        return _nothing

    def _failing_worker(self) -> Callable[[], None]:
        for manifest in self.tree.run_dir.glob("weights*.json"):
            manifest.unlink()
        self._ask("kill-standby")
        return _nothing

    def _shared_memory_full(self) -> Callable[[], None]:
        undo = self._limit_files()
        self._ask("kill-standby")
        return undo

    def _disk_full(self) -> Callable[[], None]:
        undo = self._limit_files()
        self._ask("stall")
        return undo

    def _limit_files(self) -> Callable[[], None]:
        """From now on the watchdog can make no file larger than a kilobyte, as if the file system were full."""
        return limit(self.tree.process.pid, resource.RLIMIT_FSIZE, _TINY_BYTES)

    def _memory_at_warm_up(self) -> Callable[[], None]:
        if are_cpu((self.plan.device,)):
            needed = min(mapped_bytes(worker["pid"]) for worker in self.tree.status()["workers"])
            # enough for all that it does before it maps the arena, and for the watchdog, whose limit it inherits
            arena = (self.tree.run_dir / "arena").stat().st_size
            undo = limit(self.tree.process.pid, resource.RLIMIT_AS, needed - arena // 2)
        else:
            undo = hoard(self.plan.device)
        mark = self.tail.mark()
        with contextlib.ExitStack() as stack:
            stack.callback(undo)
            self.struck_at = time.monotonic()
            self._ask("kill-active")
            reason = str(self.tail.wait(mark, ("worker_failed",), _DEADLINE_S)["reason"])
            words = any(word in reason.lower() for word in ("memory", "alloc"))
            assert words, f"it failed for another reason: {reason}"
            return stack.pop_all().close

    def _busy_neighbour(self) -> Callable[[], None]:
        with busy_neighbours(self.plan.device, outside.NEIGHBOURS_S):
            time.sleep(outside.NEIGHBOURS_S)
        return _nothing

    def _wall_clock(self) -> Callable[[], None]:
        clock, mark = self.clock, self.tail.mark()
        assert clock is not None, "this tree has the machine's clock"
        strangers = [pid for pid in self.tree.processes() if not clock.is_of(pid)]
        assert not strangers, f"processes with the machine's clock: {strangers}"
        self._ask("stall")
        clock.set(_HOUR_S)
        event = self.tail.wait(mark, ("stall",), _DEADLINE_S)
        clock.set(-_HOUR_S)
        ahead = monotonic_of(event) - time.monotonic()
        assert ahead > _HOUR_S / 2, f"the watchdog's clock was {ahead:.0f} s ahead; it should have been {_HOUR_S}"
        return lambda: clock.set(0)

    # ---- waiting

    def _whole(self, path: str) -> bool:
        status = self.tree.status()
        if path != "fused":
            return bool(status["path"] == path)
        up = [worker["state"] for worker in status["workers"]]
        up += [device["holder"]["state"] for device in status["devices"]]
        # a fault while one still imports would find the last one's restart half way
        up += [spare["state"] for spare in spares_of(status)]
        return status["path"] == "fused" and set(up) == {"ready"} and self.tree.get("/readyz")[0] == 200

    def _fused_batches(self) -> int:
        """Of the active worker of the first device, since it started."""
        status = self.tree.status()
        active = status["devices"][0]["active"]
        return next((worker["batches"].get("fused", 0) for worker in status["workers"] if worker["name"] == active), 0)

    def _until(self, what: str, condition: Callable[[], bool]) -> None:
        self.tree.wait_until(what, condition, _DEADLINE_S)

    def _until_answered(self, load: Load, path: str) -> None:
        """Each client has had an answer since, and some came by this path."""
        count = len(load.sent)

        def answered() -> bool:
            later = load.sent[count:]
            return len(later) >= 2 * load.clients and any(sent.path == path for sent in later)

        self._until(f"answers by the {path} path", answered)


def _detection_s(play: Play, event: Event, since_fault_s: float) -> float:
    """A kernel's fault begins with its launch, which may come a while after it was armed."""
    stalls = ("stall", "endless", "disk-full", "wall-clock")
    return float(event["begun_s_ago"]) if play.name in stalls else since_fault_s


def _continue(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _nothing() -> None:
    """There is nothing to undo."""
