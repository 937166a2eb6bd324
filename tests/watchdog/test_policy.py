"""The ladder as tables of histories: what is seen at which second, and what must be done then."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fdmoe_watchdog import policy
from fdmoe_watchdog.messages import Blame
from fdmoe_watchdog.metrics import SWITCHES
from fdmoe_watchdog.policy import (
    Abort,
    AbortEnded,
    BudgetGone,
    Check,
    Condemned,
    Ending,
    Fence,
    GiveUp,
    Gone,
    HolderGone,
    HolderReady,
    HolderSeen,
    Kill,
    KillHolder,
    Life,
    Observation,
    Route,
    Seen,
    SetPath,
    Start,
    StartHolder,
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
HELD = HolderSeen(alive=True, ready=True)
OK, WRONG, LATE = Check(16, True), Check(16, False), Check(16, True, suspect=True)


@dataclass
class Ladder:
    """Plays a history."""

    settings: RecoverySettings = SETTINGS
    state: policy.State = field(default_factory=lambda: policy.initial(("a", "b"), 0.0))

    def at(
        self, now: float, a: Seen, b: Seen, holder: HolderSeen = HELD, lag_s: float = 0.0
    ) -> tuple[policy.Action, ...]:
        observation = Observation(now, {"a": a, "b": b}, holder, lag_s)
        self.state, actions = policy.decide(self.state, observation, self.settings)
        return actions

    def stall(self, now: float, launch: int, b: Seen = IDLE) -> tuple[policy.Action, ...]:
        """a's launch is found silent by two readings; what the second one leads to."""
        assert self.at(now, stalled(launch), b) == ()
        return self.at(now, stalled(launch), b)

    def holding(self) -> Ladder:
        """The weights are there, and nothing else."""
        self.at(0, ABSENT, ABSENT, HolderSeen(alive=False))
        self.at(0, ABSENT, ABSENT, HELD)
        return self

    def serving(self) -> Ladder:
        """Both workers up, a active on the fused path."""
        self.holding()
        self.at(1, IDLE, IDLE)
        return self


def stalled(launch: int, quiet_s: float = 0.06) -> Seen:
    return Seen(alive=True, ready=True, launch=launch, ended=launch - 1, quiet_s=quiet_s, stall_after_s=0.05)


def ended(launch: int, **more: object) -> Seen:
    return Seen(alive=True, ready=True, ended=launch, **more)  # type: ignore[arg-type]


def test_both_are_started_when_the_weights_are_there_and_the_first_that_is_ready_serves_on_the_fused_path() -> None:
    ladder = Ladder()
    assert ladder.at(0, ABSENT, ABSENT, HolderSeen(alive=False)) == (StartHolder(1, "start"),)
    assert ladder.at(1, ABSENT, ABSENT, HolderSeen(alive=True)) == ()
    assert ladder.at(2, ABSENT, ABSENT) == (HolderReady(1), Start("a", 1, "start"), Start("b", 1, "start"))
    assert ladder.at(3, LOADING, LOADING) == ()
    assert ladder.at(4, LOADING, IDLE) == (SetPath("b", "fused", "fused", "route"), Route("b", 1))
    assert ladder.at(5, IDLE, IDLE) == ()
    assert (ladder.state.active, ladder.state.workers["b"].weights) == ("b", 1)


def test_silence_below_the_stall_time_and_idleness_are_nothing() -> None:
    ladder = Ladder().serving()
    for now in (2, 3, 4):
        assert ladder.at(now, stalled(7, quiet_s=0.049), IDLE) == ()
    assert ladder.at(1e6, ended(7), IDLE) == ()


def test_a_stall_that_an_abort_ends_costs_no_process() -> None:
    ladder = Ladder().serving()
    assert ladder.stall(2.00, 7) == (
        Abort("a", 7, "stall"),
        SetPath("a", "baseline", "fused", "stall", ()),
    )
    assert ladder.at(2.01, stalled(7, quiet_s=0.07), IDLE) == ()
    assert ladder.at(2.02, ended(7), IDLE) == (AbortEnded("a", in_time=True),)
    assert (ladder.state.active, ladder.state.path) == ("a", "baseline")
    # back by way of the shadow, after the pause
    assert ladder.at(3.99, ended(7), IDLE) == ()
    assert ladder.at(4.01, ended(7), IDLE) == (SetPath("a", "shadow", "baseline", "cooled_down", ()),)
    assert ladder.at(4.02, ended(8, checks=(OK, OK)), IDLE) == ()
    assert ladder.at(4.03, ended(9, checks=(OK,)), IDLE) == (SetPath("a", "fused", "shadow", "proven", (16,)),)


@pytest.mark.parametrize("cause", ["exit", "unreachable"])
def test_a_worker_that_the_gateway_cannot_reach_makes_way_for_the_other_and_is_killed(
    cause: Literal["exit", "unreachable"],
) -> None:
    ladder = Ladder().serving()
    cut_off = Seen(alive=True, ready=True, cut_off=cause)
    assert ladder.at(2, cut_off, IDLE) == (
        Fence("a", 1, cause),
        SetPath("", "baseline", "fused", cause, ()),
        SetPath("b", "baseline", "baseline", "route", ()),
        Route("b", 1),
        Kill("a", 1),
    )
    assert ladder.at(2.01, cut_off, IDLE) == ()
    assert ladder.at(2.1, ABSENT, IDLE) == (Gone("a", 1),)
    assert ladder.at(2.7, ABSENT, IDLE) == (Start("a", 2, cause),)


def test_a_replay_that_reaches_nobody_goes_on_with_the_next_and_ends_with_the_budget() -> None:
    ladder, now = Ladder().serving(), 2.0
    seen, unreachable = {"a": IDLE, "b": IDLE}, replace(IDLE, cut_off="unreachable")
    routes, ends = ["a"], []
    while not ends and now < 100:
        now += 1.0
        # whoever is routed to cannot be reached; who is killed is gone, who is started gets ready
        seen |= {ladder.state.active: unreachable} if ladder.state.active else {}
        for action in ladder.at(now, seen["a"], seen["b"]):
            match action:
                case Kill(worker=name):
                    seen[name] = ABSENT
                case Start(worker=name):
                    seen[name] = IDLE
                case Route(worker=name):
                    routes.append(name)
                case GiveUp():
                    ends.append(action)
    assert len(routes) == 2 + SETTINGS.restart_budget, "each start is tried once"
    assert ends == [GiveUp("no worker is left and the restart budget is gone", Ending.RESTART_ME)]


def test_a_stall_that_no_abort_ends_is_fenced_replayed_and_killed_in_that_order() -> None:
    ladder = Ladder().serving()
    ladder.stall(2.00, 7)
    assert ladder.at(2.04, stalled(7), IDLE) == ()
    assert ladder.at(2.06, stalled(7), IDLE) == (
        AbortEnded("a", in_time=False),
        Fence("a", 1, "stall"),
        SetPath("b", "baseline", "baseline", "route", ()),
        Route("b", 1),
        Kill("a", 1),
    )
    assert ladder.at(2.10, stalled(7), IDLE) == ()
    assert ladder.at(2.20, ABSENT, IDLE) == (Gone("a", 1),)
    assert ladder.at(2.69, ABSENT, IDLE) == ()
    assert ladder.at(2.70, ABSENT, IDLE) == (Start("a", 2, "stall"),)
    assert ladder.at(3.00, IDLE, IDLE) == ()
    # the survivor stays active and earns the fused path back itself
    assert ladder.at(4.05, IDLE, IDLE) == (SetPath("b", "shadow", "baseline", "cooled_down", ()),)
    assert ladder.state.active == "b"


def test_a_late_end_of_an_aborted_launch_does_not_unfence_its_worker() -> None:
    ladder = Ladder().serving()
    ladder.stall(2.00, 7)
    ladder.at(2.06, stalled(7), IDLE)
    assert ladder.at(2.07, ended(7), IDLE) == ()
    assert ladder.state.workers["a"].life is Life.DYING


def test_pauses_double_with_relapses_up_to_the_ceiling_and_start_again_after_good_times() -> None:
    ladder = Ladder().serving()
    now, launch, pauses = 2.0, 7, []
    for gap in (1, 1, 1, 60):
        ladder.stall(now, launch)
        ladder.at(now + 0.01, ended(launch), IDLE)
        pauses.append(ladder.state.retry_at - now)
        now = ladder.state.retry_at
        ladder.at(now, ended(launch), IDLE)
        ladder.at(now + 0.01, ended(launch, checks=(OK,) * 3), IDLE)
        assert ladder.state.path == "fused"
        now, launch = now + gap, launch + 1
    ladder.stall(now, launch)
    pauses.append(ladder.state.retry_at - now)
    assert pauses == pytest.approx([2, 4, 5, 5, 2])


def test_a_wrong_shadow_result_goes_back_to_the_baseline_and_doubles_the_pause() -> None:
    ladder = Ladder().serving()
    ladder.stall(2.0, 7)
    ladder.at(2.1, ended(7), IDLE)
    ladder.at(4.0, ended(7), IDLE)
    actions = ladder.at(4.1, ended(8, checks=(OK, WRONG)), IDLE)
    assert actions == (SetPath("a", "baseline", "shadow", "mismatch", ()),)
    assert ladder.state.retry_at == pytest.approx(8.1)


def test_a_stall_in_the_shadow_is_aborted_like_any_other() -> None:
    ladder = Ladder().serving()
    ladder.stall(2.0, 7)
    ladder.at(2.1, ended(7), IDLE)
    ladder.at(4.0, ended(7), IDLE)
    assert ladder.stall(4.1, 8) == (Abort("a", 8, "stall"), SetPath("a", "baseline", "shadow", "stall", ()))


def test_the_active_worker_dies() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, ABSENT, IDLE) == (
        Fence("a", 1, "exit"),
        SetPath("", "baseline", "fused", "exit", ()),
        Gone("a", 1),
        SetPath("b", "baseline", "baseline", "route", ()),
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
    assert ladder.at(11.0, IDLE, ABSENT) == (SetPath("a", "baseline", "baseline", "route", ()), Route("a", 3))


def test_a_worker_without_a_proven_fused_path_serves_on_the_baseline_for_good() -> None:
    unproven = Seen(alive=True, ready=True, fused=False)
    ladder = Ladder().holding()
    assert ladder.at(1, unproven, LOADING) == (SetPath("a", "baseline", "fused", "unproven", ()), Route("a", 1))
    assert ladder.at(1000, unproven, IDLE) == ()
    # the other one can, and may when it is its turn
    actions = ladder.at(1001, ABSENT, IDLE)
    assert actions[-2:] == (Route("b", 1), SetPath("b", "shadow", "baseline", "cooled_down", ()))


def test_a_worker_that_leaves_a_batch_untouched_is_replaced() -> None:
    ladder = Ladder().serving()
    at_it = Seen(alive=True, ready=True)
    assert ladder.at(2.0, replace(at_it, untouched_s=4.9), IDLE) == ()
    actions = ladder.at(2.1, replace(at_it, untouched_s=5.0), IDLE)
    assert actions[0] == Fence("a", 1, "frozen")
    assert actions[-1] == Kill("a", 1)


def test_a_worker_whose_host_thread_is_held_is_replaced_sooner() -> None:
    ladder = Ladder().serving()
    stuck = Seen(alive=True, ready=True, untouched_s=0.4, host_still_s=0.4)
    assert ladder.at(2.0, replace(stuck, host_still_s=0.39), IDLE) == ()
    assert ladder.at(2.1, stuck, IDLE, lag_s=0.2) == (), "the watchdog was late itself"
    assert ladder.at(2.2, stuck, IDLE) == (
        Fence("a", 1, "frozen"),
        SetPath("", "baseline", "fused", "frozen", ()),
        SetPath("b", "baseline", "baseline", "route", ()),
        Route("b", 1),
        Kill("a", 1),
    )


def test_a_worker_that_sleeps_over_a_batch_is_replaced_at_once() -> None:
    ladder = Ladder().serving()
    asleep = Seen(alive=True, ready=True, untouched_s=0.07, host_still_s=0.07, blocked_s=0.04)
    assert ladder.at(2.0, replace(asleep, blocked_s=0.035), IDLE) == ()
    assert ladder.at(2.1, asleep, IDLE, lag_s=0.2) == (), "the watchdog was late itself"
    actions = ladder.at(2.2, asleep, IDLE)
    assert (actions[0], actions[-1]) == (Fence("a", 1, "frozen"), Kill("a", 1))


@pytest.mark.parametrize("launch", [0, 7])
def test_a_worker_that_a_signal_holds_is_replaced_sooner(launch: int) -> None:
    """Its launch is not aborted first: nobody is there to end it, or to answer."""
    ladder = Ladder().serving()
    held = Seen(alive=True, ready=True, launch=launch, quiet_s=9, stall_after_s=0.05, untouched_s=0.04, held_s=0.04)
    shortly = replace(held, quiet_s=0.0)
    assert ladder.at(2.0, shortly, IDLE) == ()
    actions = ladder.at(2.1, replace(held, untouched_s=0.05, held_s=0.05), IDLE)
    assert actions[0] == Fence("a", 1, "frozen")
    assert actions[-1] == Kill("a", 1)


def test_who_is_held_by_a_signal_while_it_starts_does_not_have_until_the_start_up_deadline() -> None:
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT, HolderSeen(alive=False))
    loading = HolderSeen(alive=True, held_s=0.04)
    assert ladder.at(1, ABSENT, ABSENT, loading) == ()
    assert ladder.at(1.1, ABSENT, ABSENT, replace(loading, held_s=0.05), lag_s=0.2) == ()
    assert ladder.at(1.2, ABSENT, ABSENT, replace(loading, held_s=0.05)) == (KillHolder(1),)
    ladder = Ladder().holding()
    assert ladder.at(1, replace(LOADING, held_s=0.04), LOADING) == ()
    assert ladder.at(1.1, replace(LOADING, held_s=0.05), LOADING, lag_s=0.2) == ()
    assert ladder.at(1.2, replace(LOADING, held_s=0.05), LOADING) == (Fence("a", 1, "frozen"), Kill("a", 1))


def test_a_worker_that_does_not_come_up_is_killed_and_tried_again() -> None:
    ladder = Ladder().holding()
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
        Fence("a", 4, "exit"), Gone("a", 4), BudgetGone("a"), SetPath("b", "baseline", "shadow", "budget", ()),
    )  # fmt: skip
    assert ladder.at(now + 1000, ABSENT, IDLE) == ()
    assert (ladder.state.active, ladder.state.path, ladder.state.retry_at) == ("b", "baseline", math.inf)
    # and when the survivor goes too, nothing is left
    actions = ladder.at(now + 1001, ABSENT, ABSENT)
    assert not any(isinstance(action, GiveUp) for action in actions), "the period is over: it is tried again"


def test_nobody_left_is_given_up() -> None:
    ladder = Ladder(settings=SETTINGS.model_copy(update={"restart_budget": 0}))
    ladder.serving()
    assert ladder.at(2.0, ABSENT, ABSENT)[-1] == GiveUp(
        "no worker is left and the restart budget is gone", Ending.RESTART_ME
    )


def test_a_process_that_cannot_be_reaped_is_given_up() -> None:
    ladder = Ladder().serving()
    ladder.stall(2.00, 7)
    ladder.at(2.06, stalled(7), IDLE)
    assert ladder.at(5.04, stalled(7), IDLE) == (SetPath("b", "shadow", "baseline", "cooled_down", ()),)
    assert ladder.at(5.07, stalled(7), IDLE) == (
        GiveUp("worker a was killed and cannot be reaped after 3 s", Ending.NODE, "reset_gpu"),
    )


def test_a_second_reading_confirms_a_stall_and_a_beat_in_between_clears_it() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.000, stalled(7), IDLE) == ()
    assert ladder.at(2.005, stalled(7, quiet_s=0.001), IDLE) == ()
    assert ladder.at(2.010, stalled(7), IDLE) == (), "the first reading again"
    assert ladder.at(2.015, stalled(8), IDLE) == (), "another launch"
    assert ladder.at(2.020, stalled(8), IDLE)[0] == Abort("a", 8, "stall")


def test_a_watchdog_that_was_starved_judges_nobodys_silence_and_starts_to_look_anew() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, stalled(7), IDLE) == ()
    assert ladder.at(4.0, stalled(7), IDLE, lag_s=1.995) == ()
    frozen = Seen(alive=True, ready=True, untouched_s=60)
    assert ladder.at(6.0, frozen, IDLE, lag_s=1.995) == ()
    assert ladder.at(6.5, replace(frozen, held_s=60), IDLE, lag_s=1.995) == ()
    assert ladder.at(6.1, stalled(7), IDLE) == ()
    assert ladder.at(6.2, stalled(7), IDLE)[0] == Abort("a", 7, "stall")


@dataclass(frozen=True)
class Waiting:
    """Somebody has `allowed_s` from the last moment of `history` on, which is seen all the time; `then` follows."""

    history: tuple[tuple[float, Seen, Seen, HolderSeen], ...]
    allowed_s: float
    then: policy.Action
    lag_s: float = 12.0

    @property
    def since(self) -> float:
        return self.history[-1][0]

    def ladder(self) -> Ladder:
        ladder = Ladder()
        for moment in self.history:
            ladder.at(*moment)
        return ladder

    def at(self, ladder: Ladder, passed_s: float, lag_s: float = 0.0) -> tuple[policy.Action, ...]:
        """`passed_s`: since the wait began."""
        _, a, b, holder = self.history[-1]
        return ladder.at(self.since + passed_s, a, b, holder, lag_s)


LOST = HolderSeen(alive=False)
TAKEN = Seen(alive=False, memory_back=False)
ENDING = Seen(alive=True, ready=True, cut_off="exit")
HOLDER_STARTS = ((0.0, ABSENT, ABSENT, LOST), (0.0, ABSENT, ABSENT, HolderSeen(alive=True)))
BOTH_START = (*HOLDER_STARTS, (0.0, ABSENT, ABSENT, HELD), (0.0, IDLE, LOADING, HELD))
SERVING = (*BOTH_START, (1.0, IDLE, IDLE, HELD))
STALLS = ((2.0, IDLE, stalled(7), HELD),) * 2
WAITS = {
    "memory": Waiting(
        (*SERVING, (2.0, IDLE, TAKEN, HELD)),
        10,
        GiveUp("worker b is gone, and its memory is still taken on the device after 10 s", Ending.NODE, "reset_gpu"),
    ),
    "abort": Waiting((*SERVING, *STALLS), 0.05, AbortEnded("b", in_time=False), lag_s=2.0),
    "start": Waiting(BOTH_START, 60, Fence("b", 1, "startup"), lag_s=301.0),
    "kill": Waiting(
        (*SERVING, (2.0, IDLE, ENDING, HELD)),
        3,
        GiveUp("worker b was killed and cannot be reaped after 3 s", Ending.NODE, "reset_gpu"),
    ),
    "holder's start": Waiting(HOLDER_STARTS, 60, KillHolder(1), lag_s=301.0),
    "holder's kill": Waiting(
        (*SERVING, (2.0, IDLE, IDLE, replace(HELD, spoilt=True))),
        3,
        GiveUp("the weights holder was killed and cannot be reaped after 3 s", Ending.NODE, "reset_gpu"),
    ),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_time_for_which_the_watchdog_was_starved_counts_for_no_deadline(wait: Waiting) -> None:
    ladder, allowed_s, lag_s = wait.ladder(), wait.allowed_s, wait.lag_s
    assert wait.at(ladder, 0.5 * allowed_s) == ()
    assert wait.at(ladder, 0.6 * allowed_s + lag_s, lag_s) == (), "the first turn, which comes late"
    assert wait.at(ladder, 0.7 * allowed_s + lag_s) == (), "and the next, which has not read everything either"
    assert wait.at(ladder, 0.8 * allowed_s + 2 * lag_s, lag_s) == (), "once more"
    assert wait.at(ladder, 0.99 * allowed_s + 2 * lag_s) == ()
    assert wait.at(ladder, 1.01 * allowed_s + 2 * lag_s)[0] == wait.then


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_deadline_that_ends_in_the_late_turn_itself_is_found_over_by_the_next(wait: Waiting) -> None:
    ladder, allowed_s, lag_s = wait.ladder(), wait.allowed_s, wait.lag_s
    assert wait.at(ladder, 0.99 * allowed_s) == ()
    assert wait.at(ladder, 1.01 * allowed_s + lag_s, lag_s) == ()
    assert wait.at(ladder, 1.02 * allowed_s + lag_s)[0] == wait.then


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_turn_that_is_a_little_late_is_a_turn_like_any_other(wait: Waiting) -> None:
    ladder, lag_s = wait.ladder(), SETTINGS.watchdog_lag_max_s
    assert wait.at(ladder, 0.99 * wait.allowed_s) == ()
    assert wait.at(ladder, wait.allowed_s + lag_s, lag_s)[0] == wait.then


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_watchdog_that_is_late_in_every_turn_ends_who_is_stuck_all_the_same(wait: Waiting) -> None:
    ladder, lag_s = wait.ladder(), 0.11
    turns = [wait.at(ladder, turn * (lag_s + 0.02 * wait.allowed_s), lag_s) for turn in range(1, 55)]
    first = next(number for number, actions in enumerate(turns, start=1) if wait.then in actions)
    assert first in (50, 51), "when it has had what is allowed, less what the watchdog was late"
    assert turns[0] == ()


def test_a_pause_before_a_restart_passes_while_the_watchdog_is_starved() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, IDLE, ABSENT)
    assert ladder.at(14.005, IDLE, ABSENT, lag_s=12.0) == (Start("b", 2, "exit"),)


def test_what_ended_is_acted_on_however_late_the_watchdog_is() -> None:
    ladder = Ladder().serving()
    assert ladder.at(4.0, ABSENT, IDLE, lag_s=2.0)[0] == Fence("a", 1, "exit")


def test_what_somebody_said_is_acted_on_however_late_the_watchdog_is() -> None:
    failed = replace(IDLE, failed=("AcceleratorError: illegal address", "unknown"))
    assert Ladder().serving().at(4.0, IDLE, failed, lag_s=2.0) == (Fence("b", 1, "exit"), Kill("b", 1))
    assert Ladder().serving().at(4.0, IDLE, ENDING, lag_s=2.0) == (Fence("b", 1, "exit"), Kill("b", 1))
    assert Ladder().serving().at(4.0, IDLE, IDLE, replace(HELD, cut_off=True), lag_s=2.0) == (KillHolder(1),)


def test_the_fused_path_comes_back_for_one_token_bucket_after_the_other() -> None:
    ladder = Ladder().serving()
    ladder.stall(2.0, 7)
    ladder.at(2.1, ended(7), IDLE)
    assert ladder.at(4.0, ended(7), IDLE) == (SetPath("a", "shadow", "baseline", "cooled_down", ()),)
    small, large = Check(1, True), Check(64, True)
    assert ladder.at(4.1, ended(8, checks=(small, large, small)), IDLE) == ()
    assert ladder.at(4.2, ended(9, checks=(small,)), IDLE) == (SetPath("a", "fused", "shadow", "proven", (1,)),)
    assert ladder.at(4.3, ended(10, checks=(large,)), IDLE) == ()
    assert ladder.at(4.4, ended(11, checks=(large,)), IDLE) == (SetPath("a", "fused", "fused", "proven", (1, 64)),)
    assert ladder.state.proven == {1, 64}


def test_a_wrong_answer_that_the_trickle_finds_takes_the_fused_path_away() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, ended(7, checks=(OK, WRONG)), IDLE) == (SetPath("a", "baseline", "fused", "mismatch", ()),)
    assert ladder.state.retry_at == pytest.approx(4.0)


def test_a_fused_path_that_has_become_slow_makes_way_for_the_baseline_and_comes_back_by_the_shadow() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, ended(7, checks=(LATE, LATE)), IDLE) == (), "suspicions are none of the ladder's affair"
    slow = ended(8, checks=(LATE,), slow=True)
    assert ladder.at(2.1, slow, IDLE) == (SetPath("a", "baseline", "fused", "slow", ()),)
    assert ladder.at(2.2, slow, IDLE) == (), "said again of batches from before"
    assert ladder.at(4.1, ended(8), IDLE) == (SetPath("a", "shadow", "baseline", "cooled_down", ()),)
    # still slow: nobody is hurt, but each batch waits for a launch that nobody needs
    assert ladder.at(4.2, ended(9, checks=(LATE, LATE)), IDLE) == ()
    assert ladder.at(4.3, ended(10, checks=(LATE,), slow=True), IDLE) == (
        SetPath("a", "baseline", "shadow", "slow", ()),
    )
    assert ladder.state.retry_at == pytest.approx(8.3), "the pause doubles"
    assert ladder.at(8.3, ended(10), IDLE) == (SetPath("a", "shadow", "baseline", "cooled_down", ()),)
    # three that are right and in time, in a row
    assert ladder.at(8.4, ended(11, checks=(OK, OK, LATE)), IDLE) == ()
    assert ladder.at(8.5, ended(12, checks=(OK, OK)), IDLE) == ()
    assert ladder.at(8.6, ended(13, checks=(OK,)), IDLE) == (SetPath("a", "fused", "shadow", "proven", (16,)),)


def test_one_bucket_that_is_slow_in_the_shadow_takes_the_path_from_all() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, ended(7, slow=True), IDLE)
    ladder.at(4.0, ended(7), IDLE)
    ladder.at(4.1, ended(8, checks=(OK, OK, OK)), IDLE)
    assert (ladder.state.path, ladder.state.proven) == ("fused", {16})
    late = Check(64, True, suspect=True)
    assert ladder.at(4.2, ended(9, checks=(late,), slow=True), IDLE) == (SetPath("a", "baseline", "fused", "slow", ()),)
    assert (ladder.state.proven, ladder.state.clean) == (frozenset(), {})


def test_the_standby_is_not_asked_how_fast_it_is() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, IDLE, ended(3, slow=True)) == ()


def test_a_wrong_result_counts_before_a_slow_one() -> None:
    ladder = Ladder().serving()
    both = ended(7, checks=(WRONG, LATE), slow=True)
    assert ladder.at(2.0, both, IDLE) == (SetPath("a", "baseline", "fused", "mismatch", ()),)


def test_a_worker_that_says_it_cannot_go_on_is_not_waited_for() -> None:
    ladder = Ladder().serving()
    failed = Seen(alive=True, ready=True, failed=("AcceleratorError: illegal address", "unknown"))
    assert ladder.at(2.0, failed, IDLE)[0] == Fence("a", 1, "exit")
    assert ladder.at(2.0, failed, IDLE) == ()
    assert ladder.state.active == "b"


@pytest.mark.parametrize(
    ("blame", "other", "last"),
    [
        ("settings", LOADING, GiveUp("there is no layer 99", Ending.SETTINGS)),
        ("settings", IDLE, Kill("a", 1)),
        ("device", IDLE, GiveUp("worker a: there is no layer 99", Ending.NODE, "reset_gpu")),
        ("unknown", LOADING, Kill("a", 1)),
    ],
)
def test_whom_a_failed_start_blames_decides_whether_the_tree_goes_on(
    blame: Blame, other: Seen, last: policy.Action
) -> None:
    ladder = Ladder().holding()
    ladder.at(1, LOADING, other)
    failed = replace(LOADING, failed=("there is no layer 99", blame))
    assert ladder.at(2, failed, other)[-1] == last


def test_what_a_child_said_of_its_start_counts_although_it_has_ended_meanwhile() -> None:
    said: tuple[str, Blame] = ("there is no layer 99", "settings")
    ladder = Ladder().holding()
    assert ladder.at(1, Seen(alive=False, failed=said), LOADING)[-1] == GiveUp(said[0], Ending.SETTINGS)
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT, LOST)
    assert ladder.at(1, ABSENT, ABSENT, HolderSeen(alive=False, failed=said))[-1] == GiveUp(said[0], Ending.SETTINGS)


def test_a_trial_kernel_that_does_not_end_condemns_the_device() -> None:
    ladder = Ladder().holding()
    assert ladder.at(1, replace(LOADING, trial_s=29.9), LOADING) == ()
    assert ladder.at(1.9, replace(LOADING, trial_s=30.0), LOADING, lag_s=0.8) == (), "the watchdog was late itself"
    assert ladder.at(2, replace(LOADING, trial_s=30.0), LOADING)[-1] == GiveUp(
        "worker a: a trial kernel did not end within 30 s", Ending.NODE, "reset_gpu"
    )


def test_a_restart_waits_for_the_memory_of_the_killed_and_gives_up_without_it() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, TAKEN, IDLE)[0] == Fence("a", 1, "exit")
    assert ladder.at(3.0, TAKEN, IDLE) == (), "its pause is over"
    assert ladder.at(3.5, ABSENT, IDLE) == (Start("a", 2, "exit"),)
    ladder.at(4.0, TAKEN, IDLE)
    assert ladder.at(13.9, TAKEN, IDLE) == ()
    assert ladder.at(14.1, TAKEN, IDLE) == (
        GiveUp("worker a is gone, and its memory is still taken on the device after 10 s", Ending.NODE, "reset_gpu"),
    )


def test_a_condemned_device_is_given_up_whatever_else_there_is_to_do() -> None:
    ladder = Ladder().serving()
    condemned = Condemned("Xid 79: the GPU has fallen off the bus", "drain_node")
    _, actions = policy.decide(
        ladder.state, Observation(2.0, {"a": ABSENT, "b": IDLE}, HELD, condemned=condemned), SETTINGS
    )
    assert actions == (GiveUp("Xid 79: the GPU has fallen off the bus", Ending.NODE, "drain_node"),)


# ---- the holder of the weights


def test_workers_of_a_lost_holder_serve_on_and_move_one_after_the_other() -> None:
    ladder = Ladder().serving()
    assert ladder.at(2.0, IDLE, IDLE, LOST) == (HolderGone(1),)
    assert ladder.at(2.4, IDLE, IDLE, LOST) == ()
    assert ladder.at(2.5, IDLE, IDLE, LOST) == (StartHolder(2, "exit"),)
    assert ladder.at(2.6, IDLE, IDLE, HolderSeen(alive=True)) == ()
    # the standby first, while a serves
    assert ladder.at(3.0, IDLE, IDLE) == (HolderReady(2), Fence("b", 1, "weights"), Kill("b", 1))
    assert ladder.at(3.1, IDLE, ABSENT) == (Gone("b", 1),)
    assert ladder.at(3.2, IDLE, ABSENT) == (Start("b", 2, "weights"),)
    assert ladder.at(3.3, IDLE, LOADING) == ()
    # then a, whose place b takes on the same path
    assert ladder.at(3.4, IDLE, IDLE) == (
        Fence("a", 1, "weights"),
        SetPath("b", "fused", "fused", "route"),
        Route("b", 2),
        Kill("a", 1),
    )
    assert ladder.at(3.5, ABSENT, IDLE) == (Gone("a", 1),)
    assert ladder.at(3.6, ABSENT, IDLE) == (Start("a", 2, "weights"),)
    assert ladder.at(3.7, IDLE, IDLE) == ()
    assert ladder.state.restarts == (), "none of which is anybody's fault"
    assert {worker.weights for worker in ladder.state.workers.values()} == {2}


def test_what_the_active_worker_says_of_the_path_is_heard_before_it_makes_way_for_new_weights() -> None:
    for said in (ended(7, checks=(WRONG,)), ended(7, slow=True)):
        ladder = Ladder().serving()
        for moment in ((2.0, IDLE, IDLE, LOST), (2.5, IDLE, IDLE, LOST), (3.0, IDLE, IDLE), (3.1, IDLE, ABSENT)):
            ladder.at(*moment)
        assert ladder.at(3.2, IDLE, ABSENT) == (Start("b", 2, "weights"),)
        actions = ladder.at(3.4, said, IDLE)
        assert isinstance(actions[0], SetPath)
        assert actions[1:] == (
            Fence("a", 1, "weights"), SetPath("b", "baseline", "baseline", "route", ()), Route("b", 2), Kill("a", 1),
        )  # fmt: skip
        assert ladder.state.path == "baseline"


def test_a_standby_takes_over_although_new_weights_have_just_come() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, IDLE, IDLE, LOST)
    ladder.at(2.5, IDLE, IDLE, LOST)
    actions = ladder.at(3.0, ABSENT, IDLE)
    assert (actions[0], actions[-1]) == (HolderReady(2), Route("b", 1))


def test_a_holder_whose_end_has_begun_is_lost_and_replaced_once_it_is_gone() -> None:
    ladder = Ladder().serving()
    ending = replace(HELD, cut_off=True)
    assert ladder.at(2.0, IDLE, IDLE, ending) == (KillHolder(1),)
    assert ladder.at(2.2, IDLE, IDLE, ending) == ()
    assert ladder.at(2.3, IDLE, IDLE, LOST) == (HolderGone(1),)
    assert ladder.at(2.8, IDLE, IDLE, LOST) == (StartHolder(2, "exit"),)


def test_the_end_of_a_holder_that_takes_long_is_no_devices_fault_while_workers_have_the_weights() -> None:
    ladder = Ladder().serving()
    ending = replace(HELD, cut_off=True)
    assert ladder.at(2.0, IDLE, IDLE, ending) == (KillHolder(1),)
    assert ladder.at(200.0, IDLE, IDLE, ending) == ()
    assert ladder.at(201.0, IDLE, IDLE, LOST) == (HolderGone(1),)
    # one that does not end of a kill is another matter
    ladder = Ladder().serving()
    spoilt = replace(HELD, spoilt=True)
    assert ladder.at(2.0, IDLE, IDLE, spoilt) == (KillHolder(1),)
    assert isinstance(ladder.at(200.0, IDLE, IDLE, spoilt)[-1], GiveUp)


def test_a_batch_is_not_sent_to_one_that_ends_as_well() -> None:
    ending = replace(IDLE, cut_off="exit")
    for other in (ending, ABSENT):
        actions = Ladder().serving().at(2.0, ending, other)
        assert {Fence("a", 1, "exit"), Kill("a", 1), Fence("b", 1, "exit")} <= set(actions)
        assert not [action for action in actions if isinstance(action, Route)]


def test_what_a_holder_that_ends_has_said_decides_what_follows() -> None:
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT, LOST)
    said = ("there is no layer 99", "settings")
    ending = HolderSeen(alive=True, failed=said, cut_off=True)
    assert ladder.at(1, ABSENT, ABSENT, ending)[-1] == GiveUp(said[0], Ending.SETTINGS)


def test_weights_in_memory_that_failed_are_loaded_once_more_and_the_workers_move_to_them() -> None:
    """A worker that touches them ends, and so would its successor: restarts alone would use up the budget."""
    ladder = Ladder().serving()
    spoilt = replace(HELD, spoilt=True)
    assert ladder.at(2.0, ABSENT, IDLE, spoilt)[0] == KillHolder(1)
    assert ladder.at(2.1, ABSENT, IDLE, LOST)[0] == HolderGone(1)
    assert ladder.at(2.6, ABSENT, IDLE, LOST) == (StartHolder(2, "memory"),)
    # what met the error before it was started is behind it
    assert ladder.at(3.0, ABSENT, IDLE) == (HolderReady(2), Start("a", 2, "exit"))
    assert Kill("b", 1) in ladder.at(4.0, IDLE, IDLE)


def test_no_worker_starts_without_weights() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, IDLE, ABSENT, LOST)
    ladder.at(2.5, IDLE, ABSENT, LOST)
    assert ladder.at(9.0, IDLE, ABSENT, HolderSeen(alive=True)) == ()
    assert ladder.at(9.1, IDLE, ABSENT) == (HolderReady(2), Start("b", 2, "exit"))


def test_new_weights_that_have_no_room_beside_the_old_ones_wait_for_the_workers_to_go() -> None:
    ladder = Ladder().serving()
    ladder.at(2.0, IDLE, IDLE, LOST)
    ladder.at(2.5, IDLE, IDLE, LOST)
    no_room = HolderSeen(alive=True, failed=("80 GiB are wanted, 40 GiB are free", "settings"))
    # the active one last, so that its batch is not sent to one that is about to go
    assert ladder.at(3.0, IDLE, IDLE, no_room) == (
        KillHolder(2), Fence("b", 1, "weights"), Kill("b", 1), Fence("a", 1, "weights"), Kill("a", 1),
    )  # fmt: skip
    assert ladder.at(3.1, IDLE, IDLE, LOST) == (HolderGone(2),)
    assert ladder.at(5.0, IDLE, ABSENT, LOST) == (Gone("b", 1),), "a is not gone yet"
    assert ladder.at(5.1, ABSENT, ABSENT, LOST) == (Gone("a", 1),)
    assert ladder.at(5.2, ABSENT, ABSENT, LOST) == (StartHolder(3, "startup"),)
    assert ladder.at(6.0, ABSENT, ABSENT)[1:] == (Start("a", 2, "weights"), Start("b", 2, "weights"))
    # and if there is no room without them either, there never will be
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT, LOST)
    assert ladder.at(1, ABSENT, ABSENT, no_room)[-1] == GiveUp("80 GiB are wanted, 40 GiB are free", Ending.SETTINGS)


def test_a_holder_whose_budget_is_spent_leaves_its_workers_on_the_baseline() -> None:
    """Whoever dies from then on has no successor: the fused path is the one that workers die of."""
    ladder = Ladder(settings=SETTINGS.model_copy(update={"restart_budget": 0})).serving()
    assert ladder.at(2.0, IDLE, IDLE, LOST) == (
        HolderGone(1), BudgetGone("weights"), SetPath("a", "baseline", "fused", "budget", ()),
    )  # fmt: skip
    assert ladder.at(1000.0, IDLE, IDLE, LOST) == ()
    assert (ladder.state.active, ladder.state.path, ladder.state.retry_at) == ("a", "baseline", math.inf)


def test_a_holder_that_does_not_come_up_is_killed_and_tried_again_within_its_budget() -> None:
    ladder = Ladder()
    ladder.at(0, ABSENT, ABSENT, LOST)
    assert ladder.at(60, ABSENT, ABSENT, HolderSeen(alive=True)) == (KillHolder(1),)
    now = 60.0
    for generation in (2, 3, 4):
        now += 0.1
        assert ladder.at(now, ABSENT, ABSENT, LOST) == (HolderGone(generation - 1),)
        now = ladder.state.holder.until
        assert [type(action) for action in ladder.at(now, ABSENT, ABSENT, LOST)] == [StartHolder]
    assert ladder.at(now + 0.1, ABSENT, ABSENT, LOST) == (
        HolderGone(4), BudgetGone("weights"), SetPath("", "baseline", "fused", "budget", ()),
    )  # fmt: skip
    assert ladder.at(now + 0.2, ABSENT, ABSENT, LOST) == (
        GiveUp("the weights holder ends again and again, and no worker is left", Ending.RESTART_ME),
    )


class AnyOrder(RuleBasedStateMachine):
    """Workers do what they like in any order; the ladder's promises hold throughout."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = policy.initial(("a", "b"), 0.0)
        self.seen = {"a": ABSENT, "b": ABSENT}
        self.holder = HolderSeen(alive=False)
        self.fenced: set[tuple[str, int]] = set()
        self.started: list[float] = []
        self.holders_started: list[float] = []
        self.routed: tuple[str, int] | None = None
        self.lag_s = 0.0
        # the time without what the watchdog was starved, and when by it the present stage of each life began
        self.own_time = 0.0
        self.began = dict.fromkeys(("a", "b", "holder"), 0.0)
        # good comparisons in a row since the path was last the baseline, and what they prove; all as after a warm-up
        self.clean: Counter[int] = Counter()
        self.proven: set[int] = set()
        self.all_proven = True
        self.memory_back = True
        self.given_up = False
        self.condemned: Condemned | None = None

    @initialize(start=st.sampled_from(["nothing", "serving", "aborting", "shadow", "beside one that is unproven"]))
    def begin(self, start: str) -> None:
        """From nothing, or where most of a tree's life is spent: both workers are up, and the path is fused."""
        if start == "nothing":
            return
        self.turn(0.005)
        self.hold()
        self.turn(0.005)
        self.come_up("a")
        self.come_up("b")
        self.turn(0.005)
        assert (self.state.active, self.state.path) == ("a", "fused")
        if start == "aborting":
            self.stall("a", 3)
            self.turns(2)
            assert self.state.workers["a"].life is Life.ABORTING
        elif start == "shadow":
            self.seen["a"] = ended(3, checks=(WRONG,))
            self.turn(0.005)
            self.turn(3.0)
            assert (self.state.active, self.state.path) == ("a", "shadow")
        elif start != "serving":
            self.come_up_unproven("b")

    @rule(seconds=st.sampled_from([0.005, 0.05, 0.6, 3.0, 61.0]))
    def turn(self, seconds: float) -> None:
        if self.given_up:
            return
        self.now += seconds + self.lag_s
        self.own_time += seconds if self.starved else seconds + self.lag_s
        before = self.state
        observation = Observation(self.now, dict(self.seen), self.holder, self.lag_s, self.condemned)
        self.state, actions = policy.decide(self.state, observation, SETTINGS)
        self.check_times(before, observation, actions)
        if self.starved and not before.starved:
            self.check_that_nobody_was_late(before, observation, actions)
        self.check_buckets(before, observation, actions)
        active = before.active
        if active is not None and observation.workers[active].slow and self.condemned is None:
            assert self.state.path in ("baseline", "shadow"), "a slow path serves nobody until it is proven again"
            assert self.state.path == "baseline" or before.path == "baseline"
        if self.condemned is not None:
            assert any(isinstance(action, GiveUp) for action in actions), "nothing goes on on a condemned device"
        for action in actions:
            if isinstance(action, SetPath) and action.path != action.previous:
                switch = (action.previous, action.path, action.reason)
                assert switch in SWITCHES, "a counter that is born at 1 shows no increase"
            match action:
                case SetPath(worker=name, path=path) if path != "baseline":
                    assert self.seen[name].fused, "nobody serves or shadows with a path that was not proven"
                case Start(worker=name, generation=generation, reason=reason):
                    assert (name, generation) not in self.fenced
                    assert self.state.holder.life is Life.READY, "no worker starts without weights"
                    assert self.seen[name].memory_back, "nor beside what its predecessor left on the device"
                    self.seen[name] = LOADING
                    if reason not in ("start", "weights"):
                        self.started.append(self.now)
                        recent = [at for at in self.started if at > self.now - SETTINGS.restart_period_s]
                        assert len(recent) <= SETTINGS.restart_budget, "never more restarts than the budget"
                case StartHolder(reason=reason):
                    self.holder = HolderSeen(alive=True)
                    if reason != "start":
                        self.holders_started.append(self.now)
                case HolderGone():
                    self.holder = HolderSeen(alive=False)
                case Abort(worker=name, launch=launch):
                    assert before.workers[name].suspect == launch, "confirmed by a second reading"
                    assert not self.starved, "not by a watchdog that was starved itself"
                case Fence(worker=name, generation=generation, cause=cause):
                    self.fenced.add((name, generation))
                    if cause == "frozen":
                        seen = observation.workers[name]
                        assert (
                            seen.held_s >= SETTINGS.stopped_deadline_s
                            or seen.blocked_s >= SETTINGS.blocked_deadline_s
                            or seen.host_still_s >= SETTINGS.host_deadline_s
                            or seen.untouched_s >= SETTINGS.answer_deadline_s
                        ), "who computes or has nothing to do has longer"
                case Route(worker=name, generation=generation):
                    assert (name, generation) not in self.fenced, "never a route to a fenced generation"
                    assert self.state.workers[name].generation == generation
                    assert self.routed is None or self.routed in self.fenced, "never two active generations"
                    self.routed = (name, generation)
                case Gone(worker=name, generation=generation):
                    assert (name, generation) in self.fenced, "fenced before it is gone"
                    self.seen[name] = replace(ABSENT, memory_back=self.memory_back)
                case Kill(worker=name, generation=generation):
                    assert (name, generation) in self.fenced, "fenced before it is killed"
                case GiveUp():
                    self.given_up = True
        self.seen = {name: replace(seen, checks=(), slow=False) for name, seen in self.seen.items()}
        self.lag_s = 0.0

    @property
    def starved(self) -> bool:
        return self.lag_s > SETTINGS.watchdog_lag_max_s

    def check_times(self, before: policy.State, observation: Observation, actions: tuple[policy.Action, ...]) -> None:
        """Everybody has the time that is allowed, without what the watchdog was starved."""
        lives = {name: worker.life for name, worker in before.workers.items()} | {"holder": before.holder.life}
        had_s = {name: self.own_time - began + 1e-6 for name, began in self.began.items()}
        said = self.condemned or any(seen.failed for seen in (*observation.workers.values(), observation.holder))
        tried_s = max(seen.trial_s for seen in observation.workers.values())
        for action in actions:
            match action:
                case AbortEnded(worker=name, in_time=False):
                    assert had_s[name] >= SETTINGS.abort_deadline_s
                case Fence(worker=name, cause="startup"):
                    seen = observation.workers[name]
                    if seen.failed is None and seen.trial_s < SETTINGS.trial_deadline_s:
                        assert had_s[name] >= SETTINGS.startup_deadline_s
                case KillHolder() if before.holder.life is Life.STARTING:
                    holder = observation.holder
                    if holder.failed is None and not holder.cut_off and holder.held_s < SETTINGS.stopped_deadline_s:
                        assert had_s["holder"] >= SETTINGS.startup_deadline_s
                case GiveUp(ending=Ending.NODE) if not said and tried_s < SETTINGS.trial_deadline_s:
                    killed_s = [had_s[name] for name, life in lives.items() if life is Life.DYING]
                    gone_s = [had_s[name] for name, life in lives.items() if life is Life.BACKOFF]
                    assert (
                        max(killed_s, default=0) >= SETTINGS.kill_deadline_s
                        or max(gone_s, default=0) >= SETTINGS.reclaim_deadline_s
                    )
        after = {name: worker.life for name, worker in self.state.workers.items()} | {"holder": self.state.holder.life}
        self.began |= {name: self.own_time for name, life in after.items() if life is not lives[name]}

    def check_that_nobody_was_late(
        self, before: policy.State, observation: Observation, actions: tuple[policy.Action, ...]
    ) -> None:
        """A watchdog that was starved ends nobody who has not ended, failed or been left for new weights."""
        failed = [seen for seen in (*observation.workers.values(), observation.holder) if seen.failed]
        for action in actions:
            match action:
                case Kill(worker=name, generation=generation) if Fence(name, generation, "weights") not in actions:
                    assert observation.workers[name].failed or observation.workers[name].cut_off
                case KillHolder():
                    assert observation.holder.failed or observation.holder.cut_off or observation.holder.spoilt
                case GiveUp(ending=Ending.RESTART_ME):
                    nobody = all(worker.life is Life.ABSENT for worker in self.state.workers.values())
                    assert nobody or before.holder.life is Life.ABSENT
                case GiveUp():
                    assert self.condemned or failed

    def check_buckets(self, before: policy.State, observation: Observation, actions: tuple[policy.Action, ...]) -> None:
        """The fused path is given what was clean often enough in a row since it was last taken away, and no more."""
        if "baseline" not in (before.path, self.state.path) and self.state.active is not None:
            for check in observation.workers[self.state.active].checks:
                self.clean[check.bucket] = 0 if check.suspect else self.clean[check.bucket] + 1
                if self.clean[check.bucket] >= SETTINGS.shadow_checks:
                    self.proven.add(check.bucket)
        for action in actions:
            match action:
                case SetPath(path="baseline"):
                    self.clean.clear()
                    self.proven.clear()
                    self.all_proven = False
                case SetPath(buckets=None):
                    assert self.all_proven, "all of them only until the path is first taken away"
                case SetPath(path="fused", buckets=buckets):
                    assert buckets, "without one it is the shadow"
                    assert set(buckets) <= self.proven
                case SetPath(path="shadow", buckets=buckets):
                    assert buckets == ()

    @rule(times=st.integers(2, 4))
    def turns(self, times: int) -> None:
        for _ in range(times):
            self.turn(0.005)

    @rule(seconds=st.sampled_from([0.05, 0.6]))
    def another_turn(self, seconds: float) -> None:
        self.turn(seconds)

    @rule(lag_s=st.sampled_from([0.09, 0.5, 12.0, 301.0]))
    def starve_the_watchdog(self, lag_s: float) -> None:
        """Until its next turn."""
        self.lag_s = lag_s

    @rule(lag_s=st.sampled_from([0.5, 12.0]), seconds=st.sampled_from([0.005, 0.6, 3.0, 61.0]))
    def come_late(self, lag_s: float, seconds: float) -> None:
        self.starve_the_watchdog(lag_s)
        self.turn(seconds)
        self.turn(0.005)

    @rule(back=st.booleans())
    def keep_memory(self, back: bool) -> None:
        self.memory_back = back
        self.seen = {name: seen if seen.alive else replace(seen, memory_back=back) for name, seen in self.seen.items()}

    @rule()
    def hold(self) -> None:
        if self.holder.alive:
            self.holder = HELD

    @rule()
    def lose_the_holder(self) -> None:
        self.holder = HolderSeen(alive=False)

    @rule(times=st.integers(1, 5))
    def lose_holders_at_once(self, times: int) -> None:
        for _ in range(times):
            self.lose_the_holder()
            self.turn(0.005)
            self.turn(SETTINGS.backoff_max_s)

    @rule()
    def begin_the_holders_end(self) -> None:
        if self.holder.alive:
            self.holder = replace(self.holder, cut_off=True)

    @rule(blame=st.sampled_from(["settings", "unknown"]))
    def fail_the_holder(self, blame: Blame) -> None:
        if self.holder.alive and not self.holder.ready:
            self.holder = replace(self.holder, failed=("no room", blame))

    @rule(name=st.sampled_from("ab"), blame=st.sampled_from(["settings", "device", "weights", "unknown"]))
    def fail(self, name: str, blame: Blame) -> None:
        if self.seen[name].alive:
            self.seen[name] = replace(self.seen[name], failed=("it cannot", blame))

    @rule(name=st.sampled_from("ab"))
    def come_up(self, name: str) -> None:
        if self.seen[name].alive:
            self.seen[name] = IDLE

    @rule(name=st.sampled_from("ab"))
    def die(self, name: str) -> None:
        self.seen[name] = ABSENT

    @rule(name=st.sampled_from("ab"), cause=st.sampled_from(["exit", "page", "unreachable"]))
    def cut_off(self, name: str, cause: Literal["exit", "page", "unreachable"]) -> None:
        if self.seen[name].ready:
            self.seen[name] = replace(self.seen[name], cut_off=cause)

    @rule(name=st.sampled_from("ab"), launch=st.integers(1, 5))
    def stall(self, name: str, launch: int) -> None:
        if self.seen[name].ready:
            self.seen[name] = stalled(launch)

    @rule(name=st.sampled_from("ab"), checks=st.lists(st.sampled_from([OK, WRONG, LATE, Check(1, True)]), max_size=4))
    def end(self, name: str, checks: list[Check]) -> None:
        if self.seen[name].ready:
            self.seen[name] = ended(5, checks=tuple(checks))

    @rule(checks=st.lists(st.sampled_from([OK, OK, LATE, Check(1, True)]), min_size=1, max_size=4))
    def compare(self, checks: list[Check]) -> None:
        if self.state.active is not None:
            self.end(self.state.active, checks)
        self.turn(0.005)

    @rule(times=st.integers(1, 4))
    def be_wrong_as_soon_as_it_is_tried(self, times: int) -> None:
        for _ in range(times):
            active = self.state.active
            if active is not None and self.seen[active].ready:
                self.seen[active] = ended(5, checks=(WRONG,))
            self.turn(0.005)
            self.turn(SETTINGS.cooldown_max_s)

    @rule(name=st.sampled_from("ab"), untouched_s=st.sampled_from([0.3, 0.5, 6.0]), host_beats=st.booleans())
    def freeze(self, name: str, untouched_s: float, host_beats: bool) -> None:
        if self.seen[name].ready:
            host_still_s = 0.0 if host_beats else untouched_s
            self.seen[name] = replace(self.seen[name], untouched_s=untouched_s, host_still_s=host_still_s)

    @rule(name=st.sampled_from("ab"), blocked_s=st.sampled_from([0.03, 0.04, 0.3]))
    def sleep(self, name: str, blocked_s: float) -> None:
        if self.seen[name].ready:
            self.seen[name] = replace(
                self.seen[name], untouched_s=blocked_s, host_still_s=blocked_s, blocked_s=blocked_s
            )

    @rule(name=st.sampled_from("ab"), held_s=st.sampled_from([0.05, 0.1]))
    def stop(self, name: str, held_s: float) -> None:
        if self.seen[name].alive:
            self.seen[name] = replace(self.seen[name], untouched_s=held_s, held_s=held_s)

    @rule()
    def spoil_the_weights(self) -> None:
        if self.holder.ready:
            self.holder = replace(self.holder, spoilt=True)

    @rule()
    def stop_the_holder(self) -> None:
        if self.holder.alive:
            self.holder = replace(self.holder, held_s=0.3)

    @rule(name=st.sampled_from("ab"), trial_s=st.sampled_from([1.0, 100.0]))
    def try_the_device(self, name: str, trial_s: float) -> None:
        if self.seen[name].alive and not self.seen[name].ready:
            self.seen[name] = replace(self.seen[name], trial_s=trial_s)

    @rule(name=st.sampled_from("ab"))
    def come_up_unproven(self, name: str) -> None:
        if self.seen[name].alive:
            self.seen[name] = replace(IDLE, fused=False)

    @rule(condemned=st.sampled_from([None, Condemned("Xid 79", "drain_node")]))
    def condemn(self, condemned: Condemned | None) -> None:
        self.condemned = condemned

    @rule(name=st.sampled_from("ab"))
    def be_slow(self, name: str) -> None:
        if self.seen[name].ready:
            self.seen[name] = ended(5, checks=(LATE,), slow=True)

    @precondition(lambda self: not self.given_up)
    @invariant()
    def there_is_always_a_way_up(self) -> None:
        """Whatever has happened, weights and workers that behave from now on end in a worker that serves."""
        state, now = self.state, self.now
        holder, seen = self.holder, dict(self.seen)
        for _ in range(40):
            now += SETTINGS.restart_period_s
            observation = Observation(now, seen, holder)
            state, actions = policy.decide(state, observation, SETTINGS)
            if any(isinstance(action, GiveUp) for action in actions) or state.active is not None:
                return
            lives = {name: worker.life for name, worker in state.workers.items()}
            up = (Life.STARTING, Life.READY, Life.ABORTING)
            seen = {name: IDLE if life in up else ABSENT for name, life in lives.items()}
            holder = HELD if state.holder.life in (Life.STARTING, Life.READY) else HolderSeen(alive=False)
        raise AssertionError(f"nobody serves and nobody gave up: {state}")

    @precondition(lambda self: not self.given_up)
    @invariant()
    def an_active_worker_is_one_that_can_answer(self) -> None:
        active = self.state.active
        if active is not None:
            assert self.state.workers[active].life in (Life.READY, Life.ABORTING)
            assert self.routed == (active, self.state.workers[active].generation), "never two active generations"
            assert (active, self.state.workers[active].generation) not in self.fenced

    @invariant()
    def restarts_keep_to_the_budget(self) -> None:
        for started in (self.started, self.holders_started):
            recent = [at for at in started if at > self.now - SETTINGS.restart_period_s]
            assert len(recent) <= SETTINGS.restart_budget

    @invariant()
    def no_pause_is_longer_than_its_ceiling(self) -> None:
        """Only without any budget left is the fused path not tried again."""
        retry_at = self.state.retry_at
        assert math.isinf(retry_at) or retry_at <= self.now + SETTINGS.cooldown_max_s

    @precondition(lambda self: not self.given_up)
    @invariant()
    def not_everybody_is_absent(self) -> None:
        lives = {worker.life for worker in self.state.workers.values()}
        assert lives != {Life.ABSENT}


AnyOrder.TestCase.settings = hypothesis_settings(max_examples=400, stateful_step_count=40, deadline=None)
TestAnyOrder = AnyOrder.TestCase
