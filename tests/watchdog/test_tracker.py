"""Silence is measured in the watchdog's own time, learned per layer and size, and never from a late reading."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from fdmoe_watchdog.buckets import token_bucket
from fdmoe_watchdog.page import Exit, Phase, Snapshot, Stage
from fdmoe_watchdog.settings import RecoverySettings
from fdmoe_watchdog.tracker import StallTimes, Tracker

SETTINGS = RecoverySettings(stall_floor_s=0.05, stall_first_s=0.25, stall_ceiling_s=1.0, stall_factor=4.0)
BLANK = Snapshot(
    pid=1, generation=1, abort=0, begun=0, begun_at_ns=0, tokens=16, layer=0, deadline_ns=0, ended=0, exit=Exit.NONE,
    items=(0, 0, 0, 0), stage=Stage.SERVING, host_beats=0, answered=0, baseline_begun=0, baseline_ended=0,
    fused_batches=0, baseline_batches=0, submitted=0, slots=bytes(64),
)  # fmt: skip


def page(**words: object) -> Snapshot:
    return dataclasses.replace(BLANK, **words)  # type: ignore[arg-type]


def beat(launch: int, ticket: int, phase: Phase = Phase.UP) -> bytes:
    """The slot of one CTA."""
    return struct.pack("<8Q", launch, ticket, phase, 0, 0, 0, 0, 0)


def follow(history: list[tuple[float, Snapshot]], stall_times: StallTimes | None = None) -> Tracker:
    tracker = Tracker(stall_times or StallTimes(SETTINGS), poll_interval_s=0.005)
    for now, snapshot in history:
        tracker.read(snapshot, now)
    return tracker


def test_silence_counts_from_the_last_beat_of_the_outstanding_launch() -> None:
    history = [(0.0, page())]
    history += [(0.01 * turn, page(begun=1, slots=beat(1, min(turn, 5)))) for turn in range(1, 11)]
    tracker = follow(history)
    assert tracker.quiet_s == pytest.approx(0.05)
    assert tracker.serving_launch() == 1
    assert tracker.stall_after_s() == 0.25, "of this size nothing is known yet"


def test_the_slowest_cta_at_work_decides_and_one_that_has_left_does_not() -> None:
    def slots(turn: int) -> bytes:
        return beat(1, turn) + beat(1, 3) + beat(1, 2, Phase.LEFT) + beat(0, 9)

    tracker = follow([(0.0, page()), *[(0.01 * turn, page(begun=1, slots=slots(turn))) for turn in range(1, 11)]])
    assert tracker.quiet_s == pytest.approx(0.09), "the second CTA, at its item since the first turn"
    last = beat(1, 9, Phase.LEFT) * 3 + beat(0, 9)
    tracker.read(page(begun=1, slots=last), 0.11)
    assert tracker.quiet_s == 0, "all have left, and nobody has said that the launch is over"
    tracker.read(page(begun=1, slots=last), 0.12)
    assert tracker.quiet_s == pytest.approx(0.01)


def test_beats_from_before_a_launch_was_seen_do_not_count_against_it() -> None:
    tracker = follow([(0.0, page()), (0.02, page(slots=beat(1, 1))), (0.04, page(slots=beat(1, 1)))])
    tracker.read(page(begun=1, slots=beat(1, 1)), 0.06)
    tracker.read(page(begun=1, slots=beat(1, 1)), 0.07)
    assert tracker.quiet_s == pytest.approx(0.01)


def test_no_silence_while_nothing_is_outstanding() -> None:
    tracker = follow([(0.01 * turn, page(begun=3, ended=3)) for turn in range(100)])
    assert tracker.quiet_s == 0
    assert tracker.serving_launch() == 0


def test_a_new_launch_starts_a_new_silence() -> None:
    tracker = follow([(0.00, page(begun=1)), (0.02, page(begun=1)), (0.04, page(begun=2, ended=1))])
    assert tracker.quiet_s == 0


def test_a_starved_watchdog_does_not_take_its_own_sleep_for_a_stall() -> None:
    tracker = follow([(0.0, page(begun=1)), (0.005, page(begun=1)), (30.0, page(begun=1))])
    assert tracker.quiet_s == pytest.approx(0.005 + 5 * 0.005)


def test_warm_up_launches_have_no_stall_time() -> None:
    tracker = follow([(0.02 * turn, page(begun=1, stage=Stage.COMPILING)) for turn in range(100)])
    assert tracker.serving_launch() == 0


def test_stall_times_are_learned_from_launches_that_ended_well() -> None:
    stall_times = StallTimes(SETTINGS)
    busy = [(0.02 * turn, page(begun=1, slots=beat(1, turn // 2))) for turn in range(6)]
    follow([(-0.02, page()), *busy, (0.12, page(begun=1, ended=1, exit=Exit.DONE))], stall_times)
    # the slots moved every 0.04 s
    assert stall_times.stall_after_s(0, 16) == pytest.approx(0.16)
    assert stall_times.stall_after_s(0, 9) == pytest.approx(0.16)
    assert stall_times.stall_after_s(0, 17) == stall_times.stall_after_s(1, 16) == 0.25, "the first of its size"
    stall_times.learn(1, 16, 0.001, 0.2)
    assert stall_times.stall_after_s(1, 16) == 0.05
    stall_times.learn(0, 16, 10.0, 0.2)
    assert stall_times.stall_after_s(0, 16) == 1.0


def test_one_hiccup_is_forgotten_after_two_minutes_of_work_at_most() -> None:
    stall_times = StallTimes(SETTINGS)
    found = []
    for second in range(0, 200, 10):
        stall_times.learn(0, 16, 0.2 if second == 20 else 0.001, float(second))
        found.append(stall_times.worst_s(0, 16))
    # in the period that began at 0, and in the one after it
    assert found == [0.001] * 2 + [0.2] * 10 + [0.001] * 8
    stall_times.learn(0, 16, 0.02, 10_000.0)
    stall_times.learn(0, 16, 0.03, 20_000.0)
    assert stall_times.worst_s(0, 16) == 0.03
    stall_times.learn(0, 16, 0.01, 30_000.0)
    assert stall_times.worst_s(0, 16) == 0.03, "time without work is no reason to forget"


def test_an_aborted_launch_teaches_nothing() -> None:
    stall_times = StallTimes(SETTINGS)
    silent = [(0.02 * turn, page(begun=1)) for turn in range(10)]
    told = (0.2, page(begun=1, abort=1))
    follow([*silent, told, (0.22, page(begun=1, ended=1, abort=1, exit=Exit.ABORTED))], stall_times)
    assert stall_times.worst_s(0, 16) is None
    # nor does it when a later one has ended well by the next reading
    follow([*silent, told, (0.22, page(begun=2, ended=2, abort=1, exit=Exit.DONE))], stall_times)
    assert stall_times.worst_s(0, 16) is None
    # but one that ended well all the same was slow and not stuck
    follow([*silent, told, (0.22, page(begun=1, ended=1, abort=1, exit=Exit.DONE))], stall_times)
    assert stall_times.worst_s(0, 16) == pytest.approx(0.22)


def test_a_batch_that_nobody_touches_is_noticed_and_work_alone_ends_that() -> None:
    # the loop's beats go on: it lives, but it does not take the batch
    waiting = [(0.02 * turn, page(submitted=4, answered=3, host_beats=turn)) for turn in range(6)]
    assert follow(waiting).untouched_s == pytest.approx(0.1)
    assert follow([*waiting, (0.12, page(submitted=4, answered=3, baseline_begun=1))]).untouched_s == 0
    assert follow([*waiting, (0.12, page(submitted=4, answered=4))]).untouched_s == 0
    beating = [(0.02 * turn, page(submitted=4, answered=3, begun=1, slots=beat(1, turn))) for turn in range(6)]
    assert follow(beating).untouched_s == 0


@pytest.mark.parametrize(
    ("words", "held"),
    [
        ({}, False),
        ({"submitted": 5, "answered": 4}, True),
        (
            {"submitted": 5, "answered": 4, "begun": 3, "ended": 3, "baseline_begun": 2, "baseline_ended": 2},
            True,
        ),
        ({"submitted": 5, "answered": 4, "begun": 4, "ended": 3}, False),
        ({"submitted": 5, "answered": 4, "baseline_begun": 3, "baseline_ended": 2}, False),
    ],
)
def test_a_host_thread_is_held_while_a_batch_waits_and_neither_path_runs(words: dict[str, int], held: bool) -> None:
    assert follow([]).host_still_s == 0
    silent = [(0.02 * turn, page(host_beats=7, **words)) for turn in range(6)]
    assert follow(silent).host_still_s == (pytest.approx(0.1) if held else 0)
    # it has come back from waiting for the device, or its loop goes on and was not sent the batch: it lives
    assert follow([*silent, (0.12, page(host_beats=8, **words))]).host_still_s == 0
    # another batch that waits as well is no sign of its life
    more = page(host_beats=7, **{**words, "submitted": 6, "answered": 4})
    assert follow([*silent, (0.12, more)]).host_still_s == (pytest.approx(0.12) if held else 0)


@pytest.mark.parametrize("host_beats", [7, 8])
def test_the_silence_of_an_idle_worker_is_none_about_the_batch_that_comes(host_beats: int) -> None:
    idle = [(0.02 * turn, page(host_beats=7, submitted=4, answered=4)) for turn in range(21)]
    come = page(host_beats=host_beats, submitted=5, answered=4)
    tracker = follow([*idle, (0.42, come)])
    assert (tracker.host_still_s, tracker.untouched_s) == (0.0, 0.0)
    tracker = follow([*idle, (0.42, come), (0.44, come)])
    assert (tracker.host_still_s, tracker.untouched_s) == (pytest.approx(0.02), pytest.approx(0.02))


def test_an_idle_worker_whose_loop_stands_still_is_noticed() -> None:
    frozen = [(0.02 * turn, page(host_beats=7)) for turn in range(6)]
    assert follow(frozen).untouched_s == pytest.approx(0.1)
    assert follow([*frozen, (0.12, page(host_beats=8))]).untouched_s == 0


def test_a_launch_that_the_device_has_not_shown_yet_has_the_launch_deadline() -> None:
    def seen_after(beats_of_launch: int) -> float:
        slots = beat(beats_of_launch, 1)
        silent = [(0.02 * turn, page(begun=2, ended=1, slots=slots)) for turn in range(15)]
        return follow(silent).stall_after_s()

    assert seen_after(beats_of_launch=2) == 0.25
    assert seen_after(beats_of_launch=1) == SETTINGS.launch_deadline_s == 1.0


def test_the_time_at_a_trial_kernel_counts_from_its_start() -> None:
    assert follow([(0.02 * turn, page(stage=Stage.TRIAL)) for turn in range(6)]).trial_s == pytest.approx(0.1)
    assert follow([(0.00, page(stage=Stage.TRIAL)), (0.02, page(stage=Stage.LOADING))]).trial_s == 0


@pytest.mark.parametrize(("tokens", "bucket"), [(0, 1), (1, 1), (2, 2), (3, 4), (16, 16), (17, 32), (4096, 4096)])
def test_token_buckets(tokens: int, bucket: int) -> None:
    assert token_bucket(tokens) == bucket
