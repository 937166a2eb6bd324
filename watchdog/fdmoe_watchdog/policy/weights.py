"""The life of the process that holds the weights, and how workers move to a new one when it was lost.

Workers that map from a lost holder go on serving. When the next holder is ready, the standby is replaced first, then
the active worker, so that one of them always stands. Where a device has no room for old and new weights side by side,
the old ones go first and requests wait.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fdmoe_watchdog.policy import workers
from fdmoe_watchdog.policy.actions import BudgetGone, Ending, HolderGone, HolderReady, KillHolder, StartHolder
from fdmoe_watchdog.policy.state import FIRST_START, Life
from fdmoe_watchdog.policy.turn import Turn, restart_delay_s

_GONE = (Life.ABSENT, Life.BACKOFF)


def look(turn: Turn) -> None:
    holder, seen, settings = turn.state.holder, turn.observation.holder, turn.settings
    for_s = turn.now - holder.since
    match holder.life:
        case Life.BACKOFF if turn.now >= holder.until and not (holder.crowded and _mappers(turn)):
            restarts = holder.restarts
            if holder.reason != FIRST_START:
                restarts = (*turn.recent(restarts), turn.now)
            generation = holder.generation + 1
            _become(turn, Life.STARTING, generation=generation, restarts=restarts, crowded=False)
            turn.do(StartHolder(generation, holder.reason))
        case Life.STARTING if seen.failed is not None:
            # before its end, which may have come already: what it said decides what follows
            _kill(turn, "startup")
            _blame(turn, *seen.failed)
        case Life.STARTING | Life.READY if not seen.alive:
            _bury(turn, "exit")
        case Life.STARTING | Life.READY if seen.cut_off:
            _kill(turn, "exit")
        case Life.READY if seen.spoilt:
            # each worker that touches them would end, its successor too
            _kill(turn, "memory")
        case Life.STARTING if seen.ready:
            _become(turn, Life.READY)
            turn.do(HolderReady(holder.generation))
        case Life.STARTING if turn.is_over(for_s, settings.startup_deadline_s):
            _kill(turn, "startup")
        case Life.STARTING if turn.is_over(seen.held_s, settings.stopped_deadline_s):
            _kill(turn, "frozen")
        case Life.DYING if not seen.alive:
            _bury(turn, holder.reason)
        # of one that ends by itself nobody needs to wait for the end, while workers have what it held
        case Life.DYING if turn.is_over(for_s, settings.kill_deadline_s) and not (
            holder.reason == "exit" and _mappers(turn)
        ):
            turn.give_up(
                f"the weights holder was killed and cannot be reaped after {settings.kill_deadline_s:g} s",
                Ending.NODE,
                "reset_gpu",
            )
        case Life.ABSENT if not _mappers(turn):
            turn.give_up("the weights holder ends again and again, and no worker is left", Ending.RESTART_ME)
        case _:
            pass


def hand_over(turn: Turn) -> None:
    """One step, if one is due, of moving workers from a lost holder's weights to the present ones."""
    holder, active = turn.state.holder, turn.state.active
    if holder.life is not Life.READY:
        return
    stale = [name for name in _mappers(turn) if turn.worker(name).weights != holder.generation]
    standbys = [name for name in stale if name != active]
    if standbys:
        for name in standbys:
            if turn.worker(name).life is not Life.DYING:
                workers.kill(turn, name, workers.NEW_WEIGHTS)
    elif stale and turn.worker(stale[0]).life is Life.READY:
        others = [worker.life for name, worker in turn.state.workers.items() if name != active]
        # with no other worker to come, waiting for one would leave the old weights in use for ever
        if Life.READY in others or all(life is Life.ABSENT for life in others):
            workers.kill(turn, stale[0], workers.NEW_WEIGHTS)


def _mappers(turn: Turn) -> list[str]:
    """The workers whose processes may still map weights."""
    return [name for name, worker in turn.state.workers.items() if worker.life not in _GONE]


def _blame(turn: Turn, reason: str, blame: str) -> None:
    mappers = _mappers(turn)
    if blame == "device":
        turn.give_up(f"the weights holder: {reason}", Ending.NODE, "reset_gpu")
    elif blame == "settings" and not mappers:
        turn.give_up(reason, Ending.SETTINGS)
    elif blame == "settings":
        # it worked once, so that what is new is the old weights' part of the memory
        turn.change(holder=replace(turn.state.holder, crowded=True))
        # the active one last: no batch is to be sent again to one that is about to go
        for name in sorted(mappers, key=lambda name: name == turn.state.active):
            if turn.worker(name).life is not Life.DYING:
                workers.kill(turn, name, workers.NEW_WEIGHTS)


def _kill(turn: Turn, cause: str) -> None:
    _become(turn, Life.DYING, reason=cause)
    turn.do(KillHolder(turn.state.holder.generation))


def _bury(turn: Turn, reason: str) -> None:
    holder = turn.state.holder
    turn.do(HolderGone(holder.generation))
    delay = restart_delay_s(holder.restarts, turn.now, turn.settings)
    if delay is None:
        _become(turn, Life.ABSENT, reason=reason)
        turn.do(BudgetGone("weights"))
        workers.stay_on_baseline(turn)
        return
    _become(turn, Life.BACKOFF, until=turn.now + delay, reason=reason)


def _become(turn: Turn, life: Life, **values: Any) -> None:
    turn.change(holder=replace(turn.state.holder, life=life, since=turn.now, **{"until": 0.0, **values}))
