"""A worker's life: started, stopped, fenced, killed, buried, started again."""

from __future__ import annotations

import math

from fdmoe_watchdog.policy.actions import (
    Abort,
    AbortEnded,
    BudgetGone,
    Ending,
    Fence,
    Gone,
    Kill,
    Route,
    SetPath,
    Start,
)
from fdmoe_watchdog.policy.state import FIRST_START, Life, Seen
from fdmoe_watchdog.policy.turn import Turn, restart_delay_s

# a worker that makes way for one with new weights has done nothing wrong
NEW_WEIGHTS = "weights"
_UNCOUNTED = (FIRST_START, NEW_WEIGHTS)
_AT_WORK = (Life.STARTING, Life.READY, Life.ABORTING)


def look(turn: Turn, name: str, seen: Seen) -> None:
    worker, settings = turn.worker(name), turn.settings
    for_s = turn.now - worker.since
    match worker.life:
        case Life.BACKOFF:
            _start_when_due(turn, name, seen)
        case Life.STARTING if seen.failed is not None:
            # before its end, which may have come already: what it said decides what follows
            kill(turn, name, "startup")
            _blame(turn, name, seen.failed)
        case life if life in _AT_WORK and not seen.alive:
            _fence(turn, name, "exit")
            _bury(turn, name, "exit")
        case life if life in _AT_WORK and seen.cut_off:
            # mostly it is ending, and has not ended yet
            kill(turn, name, seen.cut_off)
        case Life.READY | Life.ABORTING if seen.failed is not None:
            # it is about to end by itself, and that may take longer than its requests can wait
            kill(turn, name, "exit")
        case Life.STARTING if seen.ready:
            turn.become(name, Life.READY)
        case Life.STARTING if turn.is_over(seen.held_s, settings.stopped_deadline_s):
            kill(turn, name, "frozen")
        case Life.STARTING if turn.is_over(seen.trial_s, settings.trial_deadline_s):
            kill(turn, name, "startup")
            turn.give_up(
                f"worker {name}: a trial kernel did not end within {settings.trial_deadline_s:g} s",
                Ending.NODE,
                "reset_gpu",
            )
        case Life.STARTING if turn.is_over(for_s, settings.startup_deadline_s):
            kill(turn, name, "startup")
        case Life.READY:
            _judge(turn, name, seen)
        case Life.ABORTING if seen.ended >= worker.launch:
            turn.become(name, Life.READY)
            turn.do(AbortEnded(name, in_time=True))
        case Life.ABORTING if turn.is_over(for_s, settings.abort_deadline_s):
            turn.do(AbortEnded(name, in_time=False))
            kill(turn, name, "stall")
        case Life.DYING if not seen.alive:
            _bury(turn, name, worker.reason)
        case Life.DYING if turn.is_over(for_s, settings.kill_deadline_s):
            turn.give_up(
                f"worker {name} was killed and cannot be reaped after {settings.kill_deadline_s:g} s",
                Ending.NODE,
                "reset_gpu",
            )
        case _:
            pass


def choose_active(turn: Turn) -> None:
    """The first that is ready, unless one is active; who is about to end is given nothing."""
    if turn.state.active is not None:
        return
    ready = [
        name
        for name, worker in turn.state.workers.items()
        if worker.life is Life.READY and turn.seen(name).alive and not turn.seen(name).cut_off
    ]
    if not ready:
        return
    name = ready[0]
    turn.change(active=name)
    if turn.state.path != "baseline" and not turn.seen(name).fused:
        turn.change(proven=frozenset())
        turn.set_path(name, "baseline", "unproven")
    else:
        turn.do(SetPath(name, turn.state.path, turn.state.path, "route", turn.state.buckets))
    turn.do(Route(name, turn.worker(name).generation))


def kill(turn: Turn, name: str, cause: str) -> None:
    generation = turn.worker(name).generation
    _fence(turn, name, cause)
    turn.become(name, Life.DYING, reason=cause)
    # the batch in flight goes to the standby before the process is killed: that takes longer
    choose_active(turn)
    turn.do(Kill(name, generation))


def stay_on_baseline(turn: Turn) -> None:
    """No other worker will come: a fused launch that no abort ends would take the service down."""
    turn.change(retry_at=math.inf)
    if turn.state.path != "baseline":
        turn.change(proven=frozenset())
        turn.set_path(turn.state.active, "baseline", "budget")


def give_up_if_nobody_is_left(turn: Turn) -> None:
    if all(worker.life is Life.ABSENT for worker in turn.state.workers.values()):
        turn.give_up("no worker is left and the restart budget is gone", Ending.RESTART_ME)


# ---- parts of the above


def _start_when_due(turn: Turn, name: str, seen: Seen) -> None:
    worker, holder, settings = turn.worker(name), turn.state.holder, turn.settings
    if not seen.memory_back:
        if turn.is_over(turn.now - worker.since, settings.reclaim_deadline_s):
            turn.give_up(
                f"worker {name} is gone, and its memory is still taken on the device after "
                f"{settings.reclaim_deadline_s:g} s",
                Ending.NODE,
                "reset_gpu",
            )
        return
    if turn.now < worker.until or holder.life is not Life.READY:
        return
    if worker.reason not in _UNCOUNTED:
        turn.change(restarts=(*turn.recent(turn.state.restarts), turn.now))
    turn.become(name, Life.STARTING, generation=worker.generation + 1, weights=holder.generation)
    turn.do(Start(name, worker.generation + 1, worker.reason))


def _judge(turn: Turn, name: str, seen: Seen) -> None:
    """Silence of a worker that should be at work. A launch is stopped at the second reading that finds it silent; a
    process that is held by a signal can end none."""
    worker, settings = turn.worker(name), turn.settings
    if turn.starved:
        turn.change_worker(name, suspect=0)
    elif seen.held_s >= settings.stopped_deadline_s:
        kill(turn, name, "frozen")
    elif seen.launch and seen.quiet_s >= seen.stall_after_s:
        if worker.suspect != seen.launch:
            turn.change_worker(name, suspect=seen.launch)
            return
        turn.become(name, Life.ABORTING, launch=seen.launch)
        turn.do(Abort(name, seen.launch, "stall"))
        if name == turn.state.active and turn.state.path != "baseline":
            turn.fall_back(name, "stall")
    elif (
        seen.untouched_s >= settings.answer_deadline_s
        or seen.host_still_s >= settings.host_deadline_s
        or seen.blocked_s >= settings.blocked_deadline_s
    ):
        kill(turn, name, "frozen")
    elif worker.suspect:
        turn.change_worker(name, suspect=0)


def _blame(turn: Turn, name: str, failed: tuple[str, str]) -> None:
    reason, blame = failed
    others = (worker.life for other, worker in turn.state.workers.items() if other != name)
    if blame == "device":
        turn.give_up(f"worker {name}: {reason}", Ending.NODE, "reset_gpu")
    elif blame == "settings" and not any(life in (Life.READY, Life.ABORTING) for life in others):
        turn.give_up(reason, Ending.SETTINGS)


def _fence(turn: Turn, name: str, cause: str) -> None:
    turn.do(Fence(name, turn.worker(name).generation, cause))
    if turn.state.active == name:
        if turn.state.path != "baseline" and cause != NEW_WEIGHTS:
            turn.fall_back(None, cause)
        turn.change(active=None)


def _bury(turn: Turn, name: str, reason: str) -> None:
    turn.do(Gone(name, turn.worker(name).generation))
    if reason == NEW_WEIGHTS:
        turn.become(name, Life.BACKOFF, until=turn.now, reason=reason)
        return
    # who waits for its restart counts as restarted: it will be
    pending = sum(
        worker.life is Life.BACKOFF and worker.reason not in _UNCOUNTED for worker in turn.state.workers.values()
    )
    delay = restart_delay_s((*turn.state.restarts, *[turn.now] * pending), turn.now, turn.settings)
    if delay is None:
        turn.become(name, Life.ABSENT, reason=reason)
        turn.do(BudgetGone(name))
        stay_on_baseline(turn)
        return
    turn.become(name, Life.BACKOFF, until=turn.now + delay, reason=reason)
