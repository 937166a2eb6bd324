"""The ladder as tables of histories: what is seen at which second, and what must be done then."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fdmoe_watchdog import policy
from fdmoe_watchdog.policy import (
    Abort,
    AbortEnded,
    BudgetGone,
    Fence,
    GiveUp,
    Gone,
    Kill,
    Life,
    Observation,
    Route,
    Seen,
    SetPath,
    Start,
)
from fdmoe_watchdog.settings import RecoverySettings

SETTINGS = RecoverySettings(
    abort_deadline_s=0.05,
    answer_deadline_s=5,
    kill_deadline_s=3,
    startup_deadline_s=60,
    backoff_initial_s=0.5,
    backoff_max_s=4,
    restart_budget=3,
    restart_period_s=100,
    cooldown_initial_s=2,
    cooldown_max_s=5,
    relapse_period_s=50,
    shadow_checks=3,
)
ABSENT = Seen(alive=False)
LOADING = Seen(alive=True)
IDLE = Seen(alive=True, ready=True)


@dataclass
class Ladder:
    """Plays a history."""

    settings: RecoverySettings = SETTINGS
    state: policy.State = field(default_factory=lambda: policy.initial(("a", "b"), 0.0))

    def at(self, now: float, a: Seen, b: Seen) -> tuple[policy.Action, ...]:
        self.state, actions = policy.decide(self.state, Observation(now, {"a": a, "b": b}), self.settings)
        return actions

    def serving(self) -> Ladder:
        """Both workers up, a active on the fused path."""
        self.at(0, ABSENT, ABSENT)
        self.at(1, IDLE, IDLE)
        return self


def stalled(launch: int, quiet_s: float = 0.06) -> Seen:
    return Seen(alive=True, ready=True, launch=launch, ended=launch - 1, quiet_s=quiet_s, stall_after_s=0.05)


def ended(launch: int, **more: object) -> Seen:
    return Seen(alive=True, ready=True, ended=launch, **more)  # type: ignore[arg-type]


def test_both_are_started_and_the_first_that_is_ready_serves_on_the_fused_path() -> None:
    ladder = Ladder()
    assert ladder.at(0, ABSENT, ABSENT) == (Start("a", 1, "start"), Start("b", 1, "start"))
    assert ladder.at(1, LOADING, LOADING) == ()
    assert ladder.at(2, LOADING, IDLE) == (SetPath("b", "fused", "fused", "route"), Route("b", 1))
    assert ladder.at(3, IDLE, IDLE) == ()
    assert ladder.state.active == "b"


def test_silence_below_the_stall_time_and_idleness_are_nothing() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2, stalled(7, quiet_s=0.049), IDLE) == ()
    assert ladder.at(1e6, ended(7), IDLE) == ()


def test_a_stall_that_an_abort_ends_costs_no_process() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.00, stalled(7), IDLE) == (
        Abort("a", 7, "stall"),
        SetPath("a", "baseline", "fused", "stall"),
    )
    assert ladder.at(2.01, stalled(7, quiet_s=0.07), IDLE) == ()
    assert ladder.at(2.02, ended(7), IDLE) == (AbortEnded("a", in_time=True),)
    assert (ladder.state.active, ladder.state.path) == ("a", "baseline")
    # back by way of the shadow, after the pause
    assert ladder.at(3.99, ended(7), IDLE) == ()
    assert ladder.at(4.01, ended(7), IDLE) == (SetPath("a", "shadow", "baseline", "cooled_down"),)
    assert ladder.at(4.02, ended(8, shadow=(True, True)), IDLE) == ()
    assert ladder.at(4.03, ended(9, shadow=(True,)), IDLE) == (SetPath("a", "fused", "shadow", "proven"),)


def test_a_worker_that_the_gateway_cannot_reach_makes_way_for_the_other_and_is_killed() -> None:
    ladder = Ladder().serving()
    cut_off = Seen(alive=True, ready=True, cut_off=True)
    assert ladder.at(2, cut_off, IDLE) == (
        Fence("a", 1, "exit"),
        SetPath("", "baseline", "fused", "exit"),
        SetPath("b", "baseline", "baseline", "route"),
        Route("b", 1),
        Kill("a", 1),
    )
    assert ladder.at(2.01, cut_off, IDLE) == ()
    assert ladder.at(2.1, ABSENT, IDLE) == (Gone("a", 1),)


def test_a_stall_that_no_abort_ends_is_fenced_replayed_and_killed_in_that_order() -> None:
    ladder = Ladder().serving()
    ladder.at(2.00, stalled(7), IDLE)
    assert ladder.at(2.04, stalled(7), IDLE) == ()
    assert ladder.at(2.06, stalled(7), IDLE) == (
        AbortEnded("a", in_time=False),
        Fence("a", 1, "stall"),
        SetPath("b", "baseline", "baseline", "route"),
        Route("b", 1),
        Kill("a", 1),
    )
    assert ladder.at(2.10, stalled(7), IDLE) == ()
    assert ladder.at(2.20, ABSENT, IDLE) == (Gone("a", 1),)
    assert ladder.at(2.69, ABSENT, IDLE) == ()
    assert ladder.at(2.70, ABSENT, IDLE) == (Start("a", 2, "stall"),)
    assert ladder.at(3.00, IDLE, IDLE) == ()
    # the survivor stays active and earns the fused path back itself
    assert ladder.at(4.05, IDLE, IDLE) == (SetPath("b", "shadow", "baseline", "cooled_down"),)
    assert ladder.state.active == "b"


def test_a_late_end_of_an_aborted_launch_does_not_unfence_its_worker() -> None:
    ladder = Ladder().serving()
    ladder.at(2.00, stalled(7), IDLE)
    ladder.at(2.06, stalled(7), IDLE)
    assert ladder.at(2.07, ended(7), IDLE) == ()
    assert ladder.state.workers["a"].life is Life.DYING


def test_pauses_double_with_relapses_up_to_the_ceiling_and_start_again_after_good_times() -> None:
    ladder = Ladder().serving()
    now, launch, pauses = 2.0, 7, []
    for gap in (1, 1, 1, 60):
        ladder.at(now, stalled(launch), IDLE)
        ladder.at(now + 0.01, ended(launch), IDLE)
        pauses.append(ladder.state.retry_at - now)
        now = ladder.state.retry_at
        ladder.at(now, ended(launch), IDLE)
        ladder.at(now + 0.01, ended(launch, shadow=(True,) * 3), IDLE)
        assert ladder.state.path == "fused"
        now, launch = now + gap, launch + 1
    ladder.at(now, stalled(launch), IDLE)
    pauses.append(ladder.state.retry_at - now)
    assert pauses == pytest.approx([2, 4, 5, 5, 2])


def test_a_wrong_shadow_result_goes_back_to_the_baseline_and_doubles_the_pause() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, stalled(7), IDLE)
    ladder.at(2.1, ended(7), IDLE)
    ladder.at(4.0, ended(7), IDLE)
    actions = ladder.at(4.1, ended(8, shadow=(True, False)), IDLE)
    assert actions == (SetPath("a", "baseline", "shadow", "mismatch"),)
    assert ladder.state.retry_at == pytest.approx(8.1)


def test_a_stall_in_the_shadow_is_aborted_like_any_other() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, stalled(7), IDLE)
    ladder.at(2.1, ended(7), IDLE)
    ladder.at(4.0, ended(7), IDLE)
    assert ladder.at(4.1, stalled(8), IDLE) == (Abort("a", 8, "stall"), SetPath("a", "baseline", "shadow", "stall"))


def test_the_active_worker_dies() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, ABSENT, IDLE) == (
        Fence("a", 1, "exit"),
        SetPath("", "baseline", "fused", "exit"),
        Gone("a", 1),
        SetPath("b", "baseline", "baseline", "route"),
        Route("b", 1),
    )
    assert ladder.at(2.5, ABSENT, IDLE) == (Start("a", 2, "exit"),)


def test_the_standby_dies_and_the_path_stays() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, IDLE, ABSENT) == (Fence("b", 1, "exit"), Gone("b", 1))
    assert (ladder.state.active, ladder.state.path) == ("a", "fused")


def test_both_die_and_whoever_comes_back_serves() -> None:
    ladder = Ladder().serving()
    actions = ladder.at(2.0, ABSENT, ABSENT)
    assert [type(action) for action in actions] == [Fence, SetPath, Gone, Fence, Gone]
    assert ladder.state.active is None
    ladder.at(3.0, ABSENT, ABSENT)
    assert ladder.at(3.5, ABSENT, ABSENT) == (
        Fence("a", 2, "exit"), Gone("a", 2), Fence("b", 2, "exit"), Gone("b", 2), BudgetGone("b"),
    )  # fmt: skip
    ladder.at(10.0, ABSENT, ABSENT)
    assert ladder.at(11.0, IDLE, ABSENT) == (SetPath("a", "baseline", "baseline", "route"), Route("a", 3))


def test_a_worker_without_a_proven_fused_path_serves_on_the_baseline_for_good() -> None:
    unproven = Seen(alive=True, ready=True, fused=False)
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT)
    assert ladder.at(1, unproven, LOADING) == (SetPath("a", "baseline", "fused", "unproven"), Route("a", 1))
    assert ladder.at(1000, unproven, IDLE) == ()
    # the other one can, and may when it is its turn
    actions = ladder.at(1001, ABSENT, IDLE)
    assert actions[-2:] == (Route("b", 1), SetPath("b", "shadow", "baseline", "cooled_down"))


def test_a_worker_that_leaves_a_batch_untouched_is_replaced() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, Seen(alive=True, ready=True, untouched_s=4.9), IDLE) == ()
    actions = ladder.at(2.1, Seen(alive=True, ready=True, untouched_s=5.0), IDLE)
    assert actions[0] == Fence("a", 1, "frozen")
    assert actions[-1] == Kill("a", 1)


def test_a_worker_that_does_not_come_up_is_killed_and_tried_again() -> None:
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT)
    ladder.at(1, LOADING, IDLE)
    assert ladder.at(59.9, LOADING, IDLE) == ()
    assert ladder.at(60, LOADING, IDLE) == (Fence("a", 1, "startup"), Kill("a", 1))
    assert ladder.at(60.1, ABSENT, IDLE) == (Gone("a", 1),)
    assert ladder.at(60.6, ABSENT, IDLE) == (Start("a", 2, "startup"),)


def test_backoff_doubles_and_a_spent_budget_keeps_the_survivor_on_the_baseline() -> None:
    ladder = Ladder().serving()
    now, delays = 2.0, []
    for _ in range(3):
        ladder.at(now, ABSENT, IDLE)
        delays.append(ladder.state.workers["a"].until - now)
        now = ladder.state.workers["a"].until
        ladder.at(now, ABSENT, IDLE)
        now += 0.1
    assert delays == pytest.approx([0.5, 1, 2])
    assert ladder.state.path == "shadow"
    assert ladder.at(now, ABSENT, IDLE) == (
        Fence("a", 4, "exit"), Gone("a", 4), BudgetGone("a"), SetPath("b", "baseline", "shadow", "budget"),
    )  # fmt: skip
    assert ladder.at(now + 1000, ABSENT, IDLE) == ()
    assert (ladder.state.active, ladder.state.path, ladder.state.retry_at) == ("b", "baseline", math.inf)
    # and when the survivor goes too, nothing is left
    actions = ladder.at(now + 1001, ABSENT, ABSENT)
    assert not any(isinstance(action, GiveUp) for action in actions), "the period is over: it is tried again"


def test_nobody_left_is_given_up() -> None:
    ladder = Ladder(settings=SETTINGS.model_copy(update={"restart_budget": 0}))
    ladder.serving()
    assert ladder.at(2.0, ABSENT, ABSENT)[-1] == GiveUp("no worker is left and the restart budget is gone")


def test_a_process_that_cannot_be_reaped_is_given_up() -> None:
    ladder = Ladder().serving()
    ladder.at(2.00, stalled(7), IDLE)
    ladder.at(2.06, stalled(7), IDLE)
    assert ladder.at(5.04, stalled(7), IDLE) == (SetPath("b", "shadow", "baseline", "cooled_down"),)
    assert ladder.at(5.07, stalled(7), IDLE) == (GiveUp("worker a was killed and cannot be reaped"),)


class AnyOrder(RuleBasedStateMachine):
    """Workers do what they like in any order; the ladder's promises hold throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = policy.initial(("a", "b"), 0.0)
        self.seen = {"a": ABSENT, "b": ABSENT}
        self.fenced: set[tuple[str, int]] = set()
        self.started: list[float] = []
        self.given_up = False

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.6, 3.0, 61.0]))
    def turn(self, seconds: float) -> None:
        if self.given_up:
            return
        self.now += seconds
        self.state, actions = policy.decide(self.state, Observation(self.now, dict(self.seen)), SETTINGS)
        for action in actions:
            match action:
                case Start(worker=name, generation=generation, reason=reason):
                    assert (name, generation) not in self.fenced
                    self.seen[name] = LOADING
                    if reason != "start":
                        self.started.append(self.now)
                case Fence(worker=name, generation=generation):
                    self.fenced.add((name, generation))
                case Route(worker=name, generation=generation):
                    assert (name, generation) not in self.fenced, "never a route to a fenced generation"
                    assert self.state.workers[name].generation == generation
                case Gone(worker=name, generation=generation):
                    assert (name, generation) in self.fenced, "fenced before it is gone"
                    self.seen[name] = ABSENT
                case Kill(worker=name, generation=generation):
                    assert (name, generation) in self.fenced, "fenced before it is killed"
                case GiveUp():
                    self.given_up = True
        self.seen = {name: Seen(seen.alive, seen.ready, seen.launch, seen.ended) for name, seen in self.seen.items()}

    @rule(name=st.sampled_from("ab"))
    def come_up(self, name: str) -> None:
        if self.seen[name].alive:
            self.seen[name] = IDLE

    @rule(name=st.sampled_from("ab"))
    def die(self, name: str) -> None:
        self.seen[name] = ABSENT

    @rule(name=st.sampled_from("ab"))
    def cut_off(self, name: str) -> None:
        if self.seen[name].ready:
            self.seen[name] = replace(self.seen[name], cut_off=True)

    @rule(name=st.sampled_from("ab"), launch=st.integers(1, 5))
    def stall(self, name: str, launch: int) -> None:
        if self.seen[name].ready:
            self.seen[name] = stalled(launch)

    @rule(name=st.sampled_from("ab"), ok=st.booleans())
    def end(self, name: str, ok: bool) -> None:
        if self.seen[name].ready:
            self.seen[name] = ended(5, shadow=(ok,))

    @precondition(lambda self: not self.given_up)
    @invariant()
    def an_active_worker_is_one_that_can_answer(self) -> None:
        active = self.state.active
        if active is not None:
            assert self.state.workers[active].life in (Life.READY, Life.ABORTING)
            assert (active, self.state.workers[active].generation) not in self.fenced

    @invariant()
    def restarts_keep_to_the_budget(self) -> None:
        recent = [at for at in self.started if at > self.now - SETTINGS.restart_period_s]
        assert len(recent) <= SETTINGS.restart_budget

    @precondition(lambda self: not self.given_up)
    @invariant()
    def there_is_always_a_way_up(self) -> None:
        lives = {worker.life for worker in self.state.workers.values()}
        assert lives != {Life.ABSENT}


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
