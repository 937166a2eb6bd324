"""A game day: every fault of the catalogue, again and again, under load, with every answer compared.

Times of one repetition:

    detect   from the fault to the watchdog's decision; of a stalled kernel, from its launch
    answer   the longest that a client waited for a request that was in flight between the fault and one second after
             the decision
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fdmoe_ops.chaos import door
from fdmoe_ops.chaos.catalogue import FAULTS, Means
from fdmoe_ops.chaos.events import Event, EventTail, monotonic_of
from fdmoe_ops.chaos.load import Load, Pool, Sent
from fdmoe_ops.chaos.plays import PLAYS, Group, Play
from fdmoe_ops.chaos.tree import Tree
from fdmoe_ops.client import WatchdogClient, WatchdogUnreachable

_DEADLINE_S = 120.0
# a fault that nobody decides about has this long to do harm
_WATCHED_S = 2.0
_AFTER_DECISION_S = 1.0
# smaller than a beat page and a flight record
_TINY_BYTES = 1024
# pauses that only protect from relapses would make the day long; what detection and the rungs need stays as it is
FLAGS = (
    "--enable-chaos", "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2",
    "--recovery-restart-budget=1000", "--recovery-backoff-initial-s=0.05", "--recovery-backoff-max-s=0.2",
    "--recovery-answer-deadline-s=3",
)  # fmt: skip
# what a client at the door may end with: it left, it was answered, it was told to come back
_FAIR = ("left", "200", "503")
_OWN_TREE = {
    "kill-watchdog": (),
    "failing-worker": ("--recovery-restart-budget=2",),
    "shared-memory-full": (),
    "disk-full": (),
}


@dataclass
class Result:
    """One fault's repetitions. Times in seconds; `notes` are counts that only some faults have."""

    play: Play
    repetitions: int = 0
    detect_s: list[float] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    final_path: str = ""
    problem: str = ""

    @property
    def ok(self) -> bool:
        play = self.play
        lost = any(sent.failed for sent in self.sent)
        wrong = any(sent.wrong for sent in self.sent) and not play.may_be_wrong
        again = any(sent.retries for sent in self.sent) and not play.may_retry
        rude = any(name not in _FAIR for name in self.notes)
        return not (self.problem or lost or wrong or again or rude) and self.final_path == play.final_path


@dataclass(frozen=True)
class Plan:
    """`flags` for `fdmoe serve`; `repetitions` of each group of faults."""

    flags: tuple[str, ...]
    pool: Pool
    clients: int
    repetitions: dict[Group, int]


def playable() -> list[str]:
    """The names of the faults, in the catalogue's order."""
    return [fault.name for fault in FAULTS]


def run(plan: Plan, names: list[str]) -> Iterator[Result]:
    """Play the faults: in one tree those that it survives, then the others in trees of their own."""
    shared = [name for name in names if name not in _OWN_TREE]
    if shared:
        with _stage(plan, ()) as stage:
            for name in shared:
                yield stage.play(Result(PLAYS[name]), plan.repetitions[PLAYS[name].group])
    for name in names:
        if name in _OWN_TREE:
            yield _play_alone(plan, Result(PLAYS[name]))


def _play_alone(plan: Plan, result: Result) -> Result:
    """In a tree of its own, or in one for each repetition where the tree is not whole afterwards."""
    repetitions = plan.repetitions[result.play.group]
    at_once = repetitions if result.play.final_path == "fused" else 1
    while result.repetitions < repetitions and not result.problem:
        with _stage(plan, _OWN_TREE[result.play.name]) as stage:
            stage.play(result, at_once)
    return result


@contextlib.contextmanager
def _stage(plan: Plan, flags: tuple[str, ...]) -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="fdmoe-game-day-") as directory:
        tree = Tree(Path(directory), *FLAGS, *plan.flags, *flags)
        try:
            tree.wait_until_ready()
            tail = EventTail(tree)
            try:
                yield Stage(plan, tree, tail)
            finally:
                tail.close()
        finally:
            tree.end()


@dataclass
class Stage:
    plan: Plan
    tree: Tree
    tail: EventTail

    def play(self, result: Result, repetitions: int) -> Result:
        with Load(self.tree.gateway_address, self.plan.pool, self.plan.clients) as load:
            for _ in range(repetitions):
                try:
                    self._repeat(result.play, load, result)
                except (AssertionError, TimeoutError, OSError, WatchdogUnreachable) as error:
                    result.problem = f"{type(error).__name__}: {error}"
                    break
                result.repetitions += 1
        result.sent += load.sent
        with contextlib.suppress(WatchdogUnreachable):
            result.final_path = self.tree.status()["path"]
        return result

    def _repeat(self, play: Play, load: Load, result: Result) -> None:
        self._until("the fused path", lambda: self._whole("fused"))
        self._until_answered(load, "fused")
        if play.served:
            self._until(f"{play.served} fused batches", lambda: self._fused_batches() >= play.served)
        mark, started = self.tail.mark(), time.monotonic()
        undo = self._inject(play.name, result)
        decided = started + _WATCHED_S
        try:
            if play.decision:
                event = self.tail.wait(mark, play.decision, _DEADLINE_S)
                decided = monotonic_of(event)
                result.detect_s.append(_detection_s(play, event, decided - started))
            for name in play.then:
                self.tail.wait(mark, (name,), _DEADLINE_S)
            # the harm of a fault, if it does any, shows in this time; none of it is a guess about who is how fast
            time.sleep(max(0.0, decided + _AFTER_DECISION_S - time.monotonic()))
        finally:
            undo()
        self._until(f"the {play.final_path} path", lambda: self._whole(play.final_path))
        self._until_answered(load, play.final_path)
        waits = [
            sent.end - sent.start
            for sent in list(load.sent)
            if sent.end > started and sent.start < decided + _AFTER_DECISION_S
        ]
        result.answer_s.append(max(waits))

    # ---- the faults

    def _inject(self, name: str, result: Result) -> Callable[[], None]:
        """Do it; returns what undoes it, where that is needed."""
        fault = next(fault for fault in FAULTS if fault.name == name)
        if fault.means is Means.WATCHDOG:
            stopped = self._pids(name)
            self._ask(name)
            return lambda: _continue(stopped)
        if name in door.VISITS:
            host, _, port = self.tree.gateway_address.partition(":")
            for outcome, count in door.VISITS[name]((host, int(port)), self.plan.pool).items():
                result.notes[outcome] = result.notes.get(outcome, 0) + count
            return _nothing
        return getattr(self, "_" + name.replace("-", "_"))()  # type: ignore[no-any-return]

    def _ask(self, name: str) -> None:
        """Until it is done: between two looks the path may have changed."""

        def done() -> bool:
            with WatchdogClient(self.tree.run_dir) as client:
                return client.arm(name).ok

        self._until(f"a chance for {name}", done)

    def _pids(self, name: str) -> list[int]:
        """The processes that this fault only stops and that nobody will kill."""
        holders = (device["holder"]["pid"] for device in self.tree.status()["devices"])
        return list(holders) if name == "stop-holder" else []

    def _stop_watchdog(self) -> Callable[[], None]:
        self.tree.process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        self.tree.process.send_signal(signal.SIGCONT)
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
        undo = _limit_files(self.tree.process.pid)
        self._ask("kill-standby")
        return undo

    def _disk_full(self) -> Callable[[], None]:
        undo = _limit_files(self.tree.process.pid)
        self._ask("stall")
        return undo

    # ---- waiting

    def _whole(self, path: str) -> bool:
        status = self.tree.status()
        if path != "fused":
            return bool(status["path"] == path)
        up = [worker["state"] for worker in status["workers"]]
        up += [device["holder"]["state"] for device in status["devices"]]
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
    return float(event["begun_s_ago"]) if play.name in ("stall", "endless", "disk-full") else since_fault_s


def _limit_files(pid: int) -> Callable[[], None]:
    """From now on the process can make no file larger than a few kilobytes, as if the file system were full."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (_TINY_BYTES, before[1]))
    return lambda: _restore_files(pid, before)


def _restore_files(pid: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def _continue(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _nothing() -> None:
    """There is nothing to undo."""
