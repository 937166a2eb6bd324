"""The working copy of one turn: the state as it changes, and the actions as they come."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from fdmoe_watchdog.messages import Path
from fdmoe_watchdog.policy.actions import Action, Ending, GiveUp, SetPath
from fdmoe_watchdog.policy.state import Life, Observation, Seen, State, Worker
from fdmoe_watchdog.settings import RecoverySettings


def restart_delay_s(restarts: tuple[float, ...], now: float, settings: RecoverySettings) -> float | None:
    """The pause before the next restart, doubling with each one in the period; None when the budget is gone."""
    recent = sum(at > now - settings.restart_period_s for at in restarts)
    if recent >= settings.restart_budget:
        return None
    return min(settings.backoff_initial_s * 2.0 ** min(recent, 60), settings.backoff_max_s)


@dataclass
class Turn:
    state: State
    observation: Observation
    settings: RecoverySettings
    actions: list[Action] = field(default_factory=list)

    @property
    def now(self) -> float:
        return self.observation.now

    @property
    def starved(self) -> bool:
        """The watchdog itself came too late to say who was silent."""
        return self.observation.lag_s > self.settings.watchdog_lag_max_s

    def leave_out_lag(self) -> None:
        """A watchdog that was starved has not read meanwhile what came: each stage of life counts as begun that much
        later. Pauses and budgets go by the clock."""
        lag_s = self.observation.lag_s
        for name, worker in self.state.workers.items():
            self.change_worker(name, since=worker.since + lag_s)
        self.change(holder=replace(self.state.holder, since=self.state.holder.since + lag_s))

    def is_over(self, for_s: float, deadline_s: float) -> bool:
        """Whether somebody has had the time that is allowed. A watchdog that was starved says so of nobody, unless it
        was starved in the turn before as well: it has turned since, and might else never end anybody."""
        return for_s >= deadline_s and not (self.starved and not self.state.starved)

    def seen(self, name: str) -> Seen:
        return self.observation.workers[name]

    def worker(self, name: str) -> Worker:
        return self.state.workers[name]

    def do(self, action: Action) -> None:
        self.actions.append(action)

    def give_up(self, reason: str, ending: Ending, node_action: str = "") -> None:
        self.do(GiveUp(reason, ending, node_action))

    def change(self, **values: Any) -> None:
        self.state = replace(self.state, **values)

    def change_worker(self, name: str, **values: Any) -> None:
        self.change(workers={**self.state.workers, name: replace(self.worker(name), **values)})

    def become(self, name: str, life: Life, **values: Any) -> None:
        """A new stage of life: what belonged to the last one alone is forgotten."""
        self.change_worker(name, life=life, since=self.now, **{"until": 0.0, "launch": 0, "suspect": 0, **values})

    def recent(self, times: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(at for at in times if at > self.now - self.settings.restart_period_s)

    # ---- the path

    def set_path(self, active: str | None, path: Path, reason: str) -> None:
        previous = self.state.path
        self.change(path=path)
        self.do(SetPath(active or "", path, previous, reason, self.state.buckets))

    def fall_back(self, active: str | None, reason: str) -> None:
        """To the baseline, for a pause that doubles if the fused path had come back only lately."""
        settings, state = self.settings, self.state
        lately = state.path == "shadow" or self.now - state.fused_since < settings.relapse_period_s
        relapse = state.cooldown_s > 0 and lately
        pause = min(state.cooldown_s * 2, settings.cooldown_max_s) if relapse else settings.cooldown_initial_s
        retry_at = state.retry_at if math.isinf(state.retry_at) else self.now + pause
        self.change(cooldown_s=pause, retry_at=retry_at, clean={}, proven=frozenset())
        self.set_path(active, "baseline", reason)
