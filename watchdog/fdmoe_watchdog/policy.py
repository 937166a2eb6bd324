"""The recovery ladder as a pure function: what was seen goes in, what is to be done comes out.

No clock, no I/O, no logging: `now` is part of the observation, on the caller's monotonic clock, in seconds.

A worker's life:

    ABSENT -> BACKOFF -> STARTING -> READY <-> ABORTING
                 ^           |         |          |
                 |           v         v          v
                 +--------- DYING <----+----------+       (budget gone: DYING -> ABSENT)

The path of the active worker:   fused -> baseline -> shadow -> fused     (shadow -> baseline on a wrong comparison)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from fdmoe_watchdog.messages import Path
from fdmoe_watchdog.settings import RecoverySettings

FIRST_START = "start"


class Life(Enum):
    ABSENT = "absent"
    BACKOFF = "backoff"
    STARTING = "starting"
    READY = "ready"
    ABORTING = "aborting"
    DYING = "dying"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the watchdog saw of one worker.

    launch        the outstanding fused launch, 0 if none
    ended         the last launch that left the device, done or aborted
    quiet_s       how long the outstanding launch has shown no beat
    stall_after_s the stall time that was learned for its layer and size
    untouched_s   how long batches have waited in the worker without any sign of work
    shadow        results of comparisons since the last observation
    fused         its fused path was proven at warm-up; without that it serves on the baseline alone
    cut_off       its connection to the gateway broke: no batch reaches it any more, whether it lives or not
    """

    alive: bool
    ready: bool = False
    launch: int = 0
    ended: int = 0
    quiet_s: float = 0.0
    stall_after_s: float = math.inf
    untouched_s: float = 0.0
    shadow: tuple[bool, ...] = ()
    fused: bool = True
    cut_off: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    now: float
    workers: Mapping[str, Seen]


@dataclass(frozen=True, slots=True)
class Worker:
    """`since`: when this stage of life began. `launch`: the one being aborted. `until`: the end of a backoff."""

    life: Life = Life.ABSENT
    generation: int = 0
    since: float = 0.0
    until: float = 0.0
    launch: int = 0
    reason: str = FIRST_START


@dataclass(frozen=True, slots=True)
class State:
    """One pair of workers on one device. `clean`: good comparisons in a row. `restarts`: their times, oldest first."""

    workers: Mapping[str, Worker]
    active: str | None = None
    path: Path = "fused"
    retry_at: float = 0.0
    cooldown_s: float = 0.0
    fused_since: float = -math.inf
    clean: int = 0
    restarts: tuple[float, ...] = ()


# ---- what is to be done


@dataclass(frozen=True, slots=True)
class Start:
    worker: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Rung 1. Comes with a flight record, which must be safe before a Kill."""

    worker: str
    launch: int
    cause: str


@dataclass(frozen=True, slots=True)
class AbortEnded:
    """Rung 1 worked (`in_time`) or did not."""

    worker: str
    in_time: bool


@dataclass(frozen=True, slots=True)
class Fence:
    """Rung 2, first half: no answer of this generation counts any more."""

    worker: str
    generation: int
    cause: str


@dataclass(frozen=True, slots=True)
class Route:
    """Rung 2, second half: this worker is active from now on; unanswered batches go to it again."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Rung 3."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The process has been reaped."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class SetPath:
    worker: str
    path: Path
    previous: Path
    reason: str


@dataclass(frozen=True, slots=True)
class BudgetGone:
    """Rung 4 refused: this worker is not restarted any more, and the fused path is not tried again."""

    worker: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Rung 5: nothing here can help; the tree ends, and the node must be looked at."""

    reason: str


Action = Start | Abort | AbortEnded | Fence | Route | Kill | Gone | SetPath | BudgetGone | GiveUp


def initial(names: tuple[str, ...], now: float) -> State:
    """All workers are to be started at once."""
    return State(workers={name: Worker(Life.BACKOFF, 0, now, now) for name in names}, fused_since=now)


def restart_delay_s(restarts: tuple[float, ...], now: float, settings: RecoverySettings) -> float | None:
    """The pause before the next restart, doubling with each one in the period; None when the budget is gone."""
    recent = sum(at > now - settings.restart_period_s for at in restarts)
    if recent >= settings.restart_budget:
        return None
    return min(settings.backoff_initial_s * 2.0 ** min(recent, 60), settings.backoff_max_s)


def decide(state: State, observation: Observation, settings: RecoverySettings) -> tuple[State, tuple[Action, ...]]:
    """One turn of the ladder. The order of the actions is the order in which they must be done."""
    turn = _Turn(state, observation.now, observation.workers, settings)
    for name, seen in observation.workers.items():
        turn.look_at(name, seen)
    turn.choose_active()
    if turn.state.active is not None:
        turn.choose_path(turn.state.active)
    turn.give_up_if_nobody_is_left()
    return turn.state, tuple(turn.actions)


@dataclass
class _Turn:
    """The working copy of one call of decide."""

    state: State
    now: float
    seen: Mapping[str, Seen]
    settings: RecoverySettings
    actions: list[Action] = field(default_factory=list)

    def look_at(self, name: str, seen: Seen) -> None:
        worker = self.state.workers[name]
        match worker.life:
            case Life.BACKOFF if self.now >= worker.until:
                if worker.reason != FIRST_START:
                    self.state = replace(self.state, restarts=(*self._recent_restarts(), self.now))
                self._become(name, Life.STARTING, generation=worker.generation + 1)
                self.actions.append(Start(name, worker.generation + 1, worker.reason))
            case Life.STARTING | Life.READY | Life.ABORTING if not seen.alive:
                self._fence(name, "exit")
                self._bury(name, "exit")
            case Life.STARTING | Life.READY | Life.ABORTING if seen.cut_off:
                # mostly it is ending, and the sockets of a process close some time before it can be reaped
                self._kill(name, "exit")
            case Life.STARTING if seen.ready:
                self._become(name, Life.READY)
            case Life.STARTING if self.now - worker.since >= self.settings.startup_deadline_s:
                self._kill(name, "startup")
            case Life.READY if seen.launch and seen.quiet_s >= seen.stall_after_s:
                self._become(name, Life.ABORTING, launch=seen.launch)
                self.actions.append(Abort(name, seen.launch, "stall"))
                if name == self.state.active:
                    self._fall_back(name, "stall")
            case Life.READY if seen.untouched_s >= self.settings.answer_deadline_s:
                self._kill(name, "frozen")
            case Life.ABORTING if seen.ended >= worker.launch:
                self._become(name, Life.READY, launch=0)
                self.actions.append(AbortEnded(name, in_time=True))
            case Life.ABORTING if self.now - worker.since >= self.settings.abort_deadline_s:
                self.actions.append(AbortEnded(name, in_time=False))
                self._kill(name, "stall")
            case Life.DYING if not seen.alive:
                self._bury(name, worker.reason)
            case Life.DYING if self.now - worker.since >= self.settings.kill_deadline_s:
                self.actions.append(GiveUp(f"worker {name} was killed and cannot be reaped"))
            case _:
                pass

    def choose_active(self) -> None:
        if self.state.active is not None:
            return
        ready = [name for name, worker in self.state.workers.items() if worker.life is Life.READY]
        if not ready:
            return
        name = ready[0]
        self.state = replace(self.state, active=name)
        if self.state.path != "baseline" and not self.seen[name].fused:
            self._set_path(name, "baseline", "unproven")
        else:
            self.actions.append(SetPath(name, self.state.path, self.state.path, "route"))
        self.actions.append(Route(name, self.state.workers[name].generation))

    def choose_path(self, active: str) -> None:
        state, seen = self.state, self.seen[active]
        shadow = seen.shadow
        if state.path == "shadow" and not all(shadow):
            self._fall_back(active, "mismatch")
        elif state.path == "shadow":
            self.state = replace(state, clean=state.clean + len(shadow))
            if self.state.clean >= self.settings.shadow_checks:
                self.state = replace(self.state, fused_since=self.now)
                self._set_path(active, "fused", "proven")
        elif (
            state.path == "baseline"
            and seen.fused
            and self.now >= state.retry_at
            and state.workers[active].life is Life.READY
        ):
            self.state = replace(state, clean=0)
            self._set_path(active, "shadow", "cooled_down")

    def give_up_if_nobody_is_left(self) -> None:
        if all(worker.life is Life.ABSENT for worker in self.state.workers.values()):
            self.actions.append(GiveUp("no worker is left and the restart budget is gone"))

    def _kill(self, name: str, cause: str) -> None:
        generation = self.state.workers[name].generation
        self._fence(name, cause)
        self._become(name, Life.DYING, reason=cause)
        # the batch in flight goes to the standby before the process is killed: that takes longer
        self.choose_active()
        self.actions.append(Kill(name, generation))

    def _fence(self, name: str, cause: str) -> None:
        self.actions.append(Fence(name, self.state.workers[name].generation, cause))
        if self.state.active == name:
            if self.state.path != "baseline":
                self._fall_back(None, cause)
            self.state = replace(self.state, active=None)

    def _bury(self, name: str, reason: str) -> None:
        self.actions.append(Gone(name, self.state.workers[name].generation))
        # who waits for its restart counts as restarted: it will be
        pending = sum(
            worker.life is Life.BACKOFF and worker.reason != FIRST_START for worker in self.state.workers.values()
        )
        restarts = (*self.state.restarts, *[self.now] * pending)
        delay = restart_delay_s(restarts, self.now, self.settings)
        if delay is None:
            self._become(name, Life.ABSENT, reason=reason)
            self.state = replace(self.state, retry_at=math.inf)
            self.actions.append(BudgetGone(name))
            if self.state.path != "baseline":
                # without a standby a fused launch that no abort ends would take the service down
                self._set_path(self.state.active, "baseline", "budget")
            return
        self._become(name, Life.BACKOFF, until=self.now + delay, reason=reason)

    def _recent_restarts(self) -> tuple[float, ...]:
        return tuple(at for at in self.state.restarts if at > self.now - self.settings.restart_period_s)

    def _fall_back(self, active: str | None, reason: str) -> None:
        """To the baseline, for a pause that doubles if the fused path had come back only lately."""
        settings, state = self.settings, self.state
        lately = state.path == "shadow" or self.now - state.fused_since < settings.relapse_period_s
        relapse = state.cooldown_s > 0 and lately
        pause = min(state.cooldown_s * 2, settings.cooldown_max_s) if relapse else settings.cooldown_initial_s
        retry_at = state.retry_at if math.isinf(state.retry_at) else self.now + pause
        self.state = replace(state, cooldown_s=pause, retry_at=retry_at, clean=0)
        self._set_path(active, "baseline", reason)

    def _set_path(self, active: str | None, path: Path, reason: str) -> None:
        previous = self.state.path
        self.state = replace(self.state, path=path)
        self.actions.append(SetPath(active or "", path, previous, reason))

    def _become(
        self,
        name: str,
        life: Life,
        *,
        generation: int | None = None,
        until: float = 0.0,
        launch: int = 0,
        reason: str | None = None,
    ) -> None:
        worker = self.state.workers[name]
        changed = Worker(
            life,
            worker.generation if generation is None else generation,
            self.now,
            until,
            launch,
            worker.reason if reason is None else reason,
        )
        self.state = replace(self.state, workers={**self.state.workers, name: changed})
