"""Flight records taken at the moment of a decision, and written by a thread of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fdmoe_watchdog import flight, host, stacks
from fdmoe_watchdog.background import Background
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.messages import ExpertTokens, InFlight
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.process import WorkerProcess

# a process that is killed in the meantime has written what it could
_STACKS_S = 0.5
_STALLS = ("stall", "frozen", "startup")


@dataclass(frozen=True, slots=True)
class FlightView:
    """A record that is safe on disk, in short; `at` in ISO 8601, UTC."""

    path: Path
    at: str
    worker: str
    cause: str
    verdict: str


class FlightRecorder:
    """`last` is the newest record that is safe on disk, `view` says what it says; `saved` is called for each. What can
    only be had later is appended to it: stacks, facts of the host, the experts' tokens, the requests in flight."""

    def __init__(self, plan: TreePlan, events: EventLog, saved: Callable[[], None]) -> None:
        self.last: Path | None = None
        self.view: FlightView | None = None
        self._directory = plan.flight_dir
        self._settings = plan.watchdog
        self._versions = {"fdmoe": plan.version, **host.versions()}
        self._events = events
        self._count = saved
        self._disk = Background("watchdog-disk")
        self._saved = threading.Event()
        self._saved.set()
        # of each worker, the record of its last stalled launch, and its layer and tokens; for the disk's thread alone
        self._paths: dict[tuple[str, int, int], tuple[Path, tuple[str, int]]] = {}
        # of generations that were fenced, the launch whose record their batch belongs to
        self._fenced: dict[tuple[str, int], int] = {}

    def record(self, process: WorkerProcess, cause: str, device: str) -> None:
        """Before the worker's process is reaped."""
        tracker, snapshot = process.tracker, process.tracker.last
        if snapshot is None:
            return  # it ended before its page was read once
        context = flight.launch_context(process.ready.layers if process.ready else (), snapshot.layer, device=device)
        document = flight.record(
            snapshot,
            worker=process.name,
            cause=cause,
            quiet_s=tracker.quiet_s,
            now_ns=time.monotonic_ns(),
            at=datetime.now(UTC),
            ages_s=tracker.ages_s,
            stall_after_s=tracker.stall_after_s(),
            learned_gap_s=tracker.learned_gap_s,
            exit_code=process.exit_code,
            context=context,
            events=self._events.last,
            versions=self._versions,
        )
        if cause in _STALLS:
            self._events.add(
                "stall",
                level="warning",
                device=device,
                worker=process.name,
                generation=process.generation,
                cause=cause,
                launch=snapshot.begun,
                quiet_s=round(tracker.quiet_s, 4),
                begun_s_ago=float(str(document["begun_s_ago"])),
                verdict=str(document["verdict"]),
            )
        key = (process.name, process.generation, snapshot.begun)
        asked = process.alive and not process.ending and stacks.request(process.pid, process.stacks_path)
        of = (str(context.get("layer")), snapshot.tokens)
        self._saved = self._disk.submit(lambda: self._save(key, document, device, of))
        self._disk.submit(lambda: self._append(key, lambda: self._surroundings(process, asked)))

    def reaped(self, process: WorkerProcess) -> None:
        """Of a process that was still ending when its record was made nobody knew the exit code."""
        if process.tracker.last is None or process.exit_code is None:
            return
        key, code = (process.name, process.generation, process.tracker.last.begun), process.exit_code
        self._disk.submit(lambda: self._append(key, lambda: {"exit_code": code}))

    def fenced(self, process: WorkerProcess) -> None:
        """A record was made of why: whoever takes the batch over will count its tokens."""
        if process.tracker.last is not None:
            self._fenced = {key: launch for key, launch in self._fenced.items() if key[0] != process.name}
            self._fenced[process.name, process.generation] = process.tracker.last.begun

    def expert_tokens(self, message: ExpertTokens) -> None:
        """Somebody has answered the batch, and counted. What is of another batch than the record's launch had, because
        others came with it or were dropped, is left out."""
        launch = message.launch
        if launch is None:
            launch = self._fenced.pop((message.worker, message.generation), None)
        if launch is None:
            return
        key, of = (message.worker, message.generation, launch), (message.layer, message.tokens)
        counts = dict(enumerate(message.counts))
        self._disk.submit(lambda: self._append(key, lambda: {"expert_tokens": counts}, of))

    def in_flight(self, message: InFlight) -> None:
        """The gateway says which requests the launch's worker had."""
        key = (message.worker, message.generation, message.launch)
        section: dict[str, object] = {"count": message.count, "requests": message.requests}
        self._disk.submit(lambda: self._append(key, lambda: {"in_flight": section}))

    def wait(self, timeout_s: float) -> None:
        """Until the last record is safe, but no longer than this."""
        self._saved.wait(timeout_s)

    # ---- in the disk's thread: a full or hanging disk must not stop a recovery

    def _save(self, key: tuple[str, int, int], document: dict[str, object], device: str, of: tuple[str, int]) -> None:
        try:
            self.last = flight.save(self._directory, document, self._settings)
        except OSError as error:
            self._lost(error)
            return
        at, worker, cause, verdict = (str(document[key]) for key in ("at", "worker", "cause", "verdict"))
        self.view = FlightView(self.last, at, worker, cause, verdict)
        self._count()
        # a worker has one record that anything is still appended to
        self._paths = {other: kept for other, kept in self._paths.items() if other[:2] != key[:2]}
        self._paths[key] = self.last, of
        worker, generation, _ = key
        self._events.add("flight_record", device=device, worker=worker, generation=generation, file=self.last.name)

    def _append(
        self,
        key: tuple[str, int, int],
        sections: Callable[[], dict[str, object]],
        of: tuple[str, int] | None = None,
    ) -> None:
        """`of`: the layer and the number of tokens that the record must be of."""
        path, shape = self._paths.get(key, (None, None))
        if path is None or of not in (None, shape):
            return
        try:
            flight.append(path, sections(), self._settings)
        except (OSError, flight.RecordError) as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._events.add("flight_record_lost", level="error", directory=str(self._directory), reason=str(error))

    def _surroundings(self, process: WorkerProcess, asked: bool) -> dict[str, object]:
        sections: dict[str, object] = {"host": host.host_facts()}
        if asked:
            sections["stacks"] = stacks.gather(process.pid, process.stacks_path, _STACKS_S)
        return sections
