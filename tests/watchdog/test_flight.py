"""A stall in words: who waits for what, and who holds it, whatever is on the page."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdmoe_watchdog import flight
from fdmoe_watchdog.flight_verdict import Cause
from fdmoe_watchdog.messages import LayerInfo
from fdmoe_watchdog.page import ALL_EXPERTS, Exit, Phase, Snapshot, Stage, Wait

AT = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
NOBODY = bytes(64)


def slot(ticket: int, phase: int, expert: int = 0, tile: tuple[int, int] = (0, 0), *, launch: int = 7,
         wait: int = Wait.NONE, target: int = 0, seen: int = 0, items: int = 0) -> bytes:  # fmt: skip
    return struct.pack(
        "<8Q", launch, ticket + 1, phase, expert, tile[0] << 32 | tile[1], wait << 32 | target, seen, items
    )  # fmt: skip


def page(*slots: bytes) -> Snapshot:
    return Snapshot(
        pid=9, generation=2, abort=0, begun=7, begun_at_ns=1_000_000_000, tokens=16, layer=3, deadline_ns=0, ended=6,
        exit=Exit.DONE, items=(1, 2, 3, 4), stage=Stage.SERVING, host_beats=0, answered=4, baseline_begun=0,
        baseline_ended=0, fused_batches=0, baseline_batches=0, submitted=5, slots=b"".join(slots),
    )  # fmt: skip


# the fault of the drill: the first up tile is done, and its signal was lost
LOST = page(
    slot(41, Phase.DOWN, 9, (0, 1), wait=Wait.UP_TILES, target=6, seen=5),
    slot(40, Phase.DOWN, 9, (0, 0), wait=Wait.UP_TILES, target=6, seen=5),
    slot(50, Phase.COMBINE, wait=Wait.DOWN_TILES, target=12, seen=10),
    slot(51, Phase.LEFT),
    slot(9, Phase.UP, launch=6),
)
ENDLESS = page(
    slot(93, Phase.DOWN, 93, (0, 4), wait=Wait.UP_TILES, target=6, seen=5),
    slot(12, Phase.UP, 93, (0, 2)),
    slot(94, Phase.COMBINE, wait=Wait.DOWN_TILES, target=12, seen=3),
    NOBODY,
)


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        pytest.param(
            LOST,
            "CTA 1 waits in down, expert 9, tile (0, 0), for 1 of 6 up tiles, and no CTA holds the missing tile: its "
            "completion was lost; 2 more CTAs behind it; launch 7 of layer 3 with 16 tokens: 3 waiting, 0 working, "
            "1 left, of 4 CTAs",
            id="a lost signal",
        ),
        pytest.param(
            ENDLESS,
            "CTA 0 waits in down, expert 93, tile (0, 4), for 1 of 6 up tiles: CTA 1 took up, expert 93, tile (0, 2) "
            "412 ms ago and does not finish it; 1 more CTA behind it; launch 7 of layer 3 with 16 tokens: 2 waiting, "
            "1 working, 0 left, of 3 CTAs",
            id="a CTA that does not finish",
        ),
        pytest.param(
            page(
                slot(93, Phase.DOWN, 93, (0, 4), wait=Wait.UP_TILES, target=8, seen=0),
                *(slot(10 + tile, Phase.UP, 93, (0, tile)) for tile in range(6)),
                # another row tile, another expert and a younger ticket are not what is waited for
                slot(30, Phase.UP, 93, (1, 0)),
                slot(31, Phase.UP, 92, (0, 0)),
                slot(99, Phase.UP, 93, (0, 7)),
            ),
            "CTA 0 waits in down, expert 93, tile (0, 4), for 8 of 8 up tiles: CTA 1 took up, expert 93, tile (0, 0) "
            "412 ms ago and does not finish it, nor CTAs 2, 3, 4 and 2 more theirs; CTA 7 took up, expert 93, tile "
            "(1, 0) 412 ms ago and does not finish it, nor CTAs 8, 9 theirs; launch 7 of layer 3 with 16 tokens: "
            "1 waiting, 9 working, 0 left, of 10 CTAs",
            id="several hold it, others work on what nobody waits for",
        ),
        pytest.param(
            page(
                slot(8, Phase.UP, wait=Wait.ROUTE_TILES, target=4, seen=3),
                slot(2, Phase.ROUTE, tile=(2, 0)),
                slot(7, Phase.UP, wait=Wait.ROUTE_TILES, target=4, seen=3),
            ),
            "CTA 2 waits before its first expert tile, for 1 of 4 route tiles: CTA 1 took route, tile 2 412 ms ago and "
            "does not finish it; 1 more CTA behind it; launch 7 of layer 3 with 16 tokens: 2 waiting, 1 working, "
            "0 left, of 3 CTAs",
            id="routing",
        ),
        pytest.param(
            page(
                slot(50, Phase.COMBINE, tile=(2, 0), wait=Wait.DOWN_TILES, target=12, seen=11),
                slot(31, Phase.DOWN, 1, (1, 2)),
            ),
            "CTA 0 waits in combine, tile (2, 0), for 1 of 12 down tiles: CTA 1 took down, expert 1, tile (1, 2) "
            "412 ms ago and does not finish it; launch 7 of layer 3 with 16 tokens: 1 waiting, 1 working, 0 left, of "
            "2 CTAs",
            id="combine",
        ),
        pytest.param(
            page(
                slot(50, Phase.COMBINE, wait=Wait.DOWN_TILES, target=12, seen=4),
                slot(40, Phase.DOWN, 9, wait=Wait.UP_TILES, target=6, seen=2),
                slot(23, Phase.UP, 9, (0, 3), wait=Wait.UP_TILES, target=1, seen=0),
                slot(11, Phase.UP, 9, (0, 0)),
            ),
            "CTA 2 waits in up, expert 9, tile (0, 3), for 1 of 1 up tile: CTA 3 took up, expert 9, tile (0, 0) 412 ms "
            "ago and does not finish it; 2 more CTAs behind it; launch 7 of layer 3 with 16 tokens: 3 waiting, "
            "1 working, 0 left, of 4 CTAs",
            id="combine waits for down for up for the tile that sorts the rows",
        ),
        pytest.param(
            page(
                slot(93, Phase.DOWN, ALL_EXPERTS % 2**64, (0, 4), wait=Wait.UP_TILES, target=128, seen=127),
                slot(17, Phase.UP, 93, (0, 2)),
            ),
            "CTA 0 waits in down, all experts, tile (0, 4), for 1 of 128 up tiles: CTA 1 took up, expert 93, tile "
            "(0, 2) 412 ms ago and does not finish it; launch 7 of layer 3 with 16 tokens: 1 waiting, 1 working, "
            "0 left, of 2 CTAs",
            id="one token: down waits for the up items of all its experts",
        ),
        pytest.param(
            page(
                slot(93, Phase.DOWN, 93, wait=Wait.UP_TILES, target=6, seen=5),
                slot(3, Phase.UP, 1, (0, 2)),
            ),
            "CTA 0 waits in down, expert 93, tile (0, 0), for 1 of 6 up tiles that no CTA shows, and that may be held "
            "behind an older item: CTA 1 took up, expert 1, tile (0, 2) 412 ms ago and does not finish it; launch 7 of "
            "layer 3 with 16 tokens: 1 waiting, 1 working, 0 left, of 2 CTAs",
            id="tickets taken ahead are not on the page",
        ),
        pytest.param(
            page(slot(5, Phase.UP, 1, (1, 2)), slot(4, Phase.UP, 1, (1, 1))),
            "CTA 1 took up, expert 1, tile (1, 1) 412 ms ago and does not finish it, nor CTA 0 theirs; launch 7 of "
            "layer 3 with 16 tokens: 0 waiting, 2 working, 0 left, of 2 CTAs",
            id="nobody waits",
        ),
        pytest.param(
            page(slot(1, Phase.LEFT, launch=6), NOBODY),
            "no CTA has shown a beat of launch 7 of layer 3 with 16 tokens",
            id="no beat yet",
        ),
        pytest.param(
            page(slot(60, Phase.LEFT), slot(61, Phase.LEFT)),
            "all 2 CTAs that have shown a beat have left, and the launch has not ended; launch 7 of layer 3 with 16 "
            "tokens: 0 waiting, 0 working, 2 left, of 2 CTAs",
            id="all left",
        ),
        pytest.param(
            page(slot(60, 77), slot(61, Phase.DOWN, wait=9)),
            "no CTA shows a work item that is known here; launch 7 of layer 3 with 16 tokens: 0 waiting, 0 working, "
            "0 left, 2 unreadable, of 2 CTAs",
            id="noise",
        ),
    ],
)
def test_the_verdict_names_the_culprit_and_its_victims(snapshot: Snapshot, words: str) -> None:
    assert flight.explain(snapshot, ages_s=[0.4123] * 10).words == words


def test_without_ages_nothing_is_said_of_them() -> None:
    assert "CTA 1 took up, expert 93, tile (0, 2) and does not finish it" in flight.explain(ENDLESS).words


def test_a_wait_of_two_missing_tiles_and_a_long_age() -> None:
    snapshot = page(
        slot(40, Phase.DOWN, 9, wait=Wait.UP_TILES, target=6, seen=4), slot(70, Phase.DOWN, 8)
    )  # fmt: skip
    assert flight.explain(snapshot, ages_s=(0.0, 12.34), layer="demo/layers.3").words == (
        "CTA 0 waits in down, expert 9, tile (0, 0), for 2 of 6 up tiles, and no CTA holds the missing tiles: their "
        "completion was lost; CTA 1 took down, expert 8, tile (0, 0) 12.3 s ago and does not finish it; launch 7 of "
        "demo/layers.3 with 16 tokens: 1 waiting, 1 working, 0 left, of 2 CTAs"
    )


def test_the_causes_for_programs() -> None:
    assert flight.explain(LOST).causes == (Cause("lost", (), 1, 3),)
    assert flight.explain(ENDLESS).causes == (Cause("held", (1,), 0, 2),)
    many = page(
        *(slot(40 + expert, Phase.DOWN, expert, wait=Wait.UP_TILES, target=6) for expert in range(4)),
        slot(3, Phase.UP, 2),
        slot(4, Phase.UP, 0),
    )
    verdict = flight.explain(many)
    assert verdict.causes == (
        Cause("held", (5,), 0, 1),
        Cause("behind", (4, 5), 1, 1),
        # CTA 4 is known by then, and the last wait is put down to it
        Cause("held", (4,), 2, 2),
    )
    assert "; 1 more cause of waits; launch 7" in verdict.words


@pytest.mark.parametrize(
    ("cause", "exit_code", "changes", "words"),
    [
        ("frozen", None, {}, "the worker shows no sign of work; no launch is outstanding; the worker serves, with "
         "1 batch unanswered, and is not at the device"),
        ("frozen", None, {"host_beats": 7}, "the worker shows no sign of work; no launch is outstanding; the worker "
         "serves, with 1 batch unanswered, and waits for the device or for messages"),
        ("frozen", None, {"baseline_begun": 3, "submitted": 6}, "the worker shows no sign of work; no launch is "
         "outstanding; the worker is in run 3 of the baseline path, with 2 batches unanswered"),
        ("startup", None, {"stage": Stage.COMPILING}, "the worker did not become ready in time; no launch is "
         "outstanding; the worker is compiling and warming up"),
        ("startup", None, {"stage": Stage.STARTING}, "the worker did not become ready in time; no launch is "
         "outstanding; the worker has not begun to load"),
        ("failed", None, {"stage": Stage.LOADING}, "the worker could not start; no launch is outstanding; the worker "
         "is loading"),
        ("exit", -11, {"submitted": 4}, "the worker's process has ended (by SIGSEGV); no launch is outstanding; the "
         "worker serves, with 0 batches unanswered"),
        ("exit", 1, {"submitted": 0}, "the worker's process has ended (exit code 1); no launch is outstanding; the "
         "worker serves, with 0 batches unanswered"),
        ("exit", -200, {}, "the worker's process has ended (by signal 200); no launch is outstanding; the worker "
         "serves, with 1 batch unanswered, and is not at the device"),
        ("page", None, {"stage": Stage.LOADING}, "the worker's beat page is damaged; no launch is "
         "outstanding; the worker is loading"),
        ("unreachable", None, {"submitted": 0}, "the gateway cannot reach the worker; no launch is outstanding; the "
         "worker serves, with 0 batches unanswered"),
        ("something new", None, {}, "no launch is outstanding; the worker serves, with 1 batch unanswered, "
         "and is not at the device"),
    ],
)  # fmt: skip
def test_other_causes_without_a_launch(cause: str, exit_code: int | None, changes: dict[str, int], words: str) -> None:
    snapshot = dataclasses.replace(ENDLESS, ended=7, **changes)  # type: ignore[arg-type]
    assert flight.explain(snapshot, cause=cause, exit_code=exit_code).words == words


def test_a_process_that_ends_within_a_launch() -> None:
    words = flight.explain(ENDLESS, cause="exit", exit_code=-9).words
    assert words.startswith("the worker's process has ended (by SIGKILL); CTA 0 waits in down, expert 93, tile (0, 4)")


WORD = st.integers(0, 2**64 - 1)
LIKELY = st.tuples(
    st.just(7), st.integers(0, 12), st.integers(0, 6), st.integers(0, 2), st.integers(0, 2),
    st.integers(0, 4).map(lambda wait: wait << 32 | 3), st.integers(0, 4), WORD,
)  # fmt: skip
LINES = st.lists(LIKELY | st.tuples(*[WORD] * 8), max_size=40)


@example(
    # CTA 1 waits behind CTA 0 alone, CTA 3 behind 0 and 2, whose ticket is as old as CTA 1's
    slots=b"".join(
        struct.pack("<8Q", *line)
        for line in (
            (7, 1, 2, 0, 0, 3, 0, 0),
            (7, 2, 1, 0, 0, 1 << 32 | 3, 0, 0),
            (7, 2, 1, 0, 0, 3, 0, 0),
            (7, 0, 1, 0, 0, 3 << 32 | 3, 0, 0),
        )
    ),
    ages=[],
    cause="stall",
)
@given(slots=LINES.map(lambda lines: b"".join(struct.pack("<8Q", *line) for line in lines)) | st.binary(max_size=300),
       ages=st.lists(st.floats(0, 1e9), max_size=40), cause=st.sampled_from(["stall", "exit", "page"]))  # fmt: skip
def test_whatever_is_on_the_page_is_explained(slots: bytes, ages: list[float], cause: str) -> None:
    verdict = flight.explain(dataclasses.replace(page(), slots=slots), ages_s=ages, cause=cause)
    assert "launch 7 of layer 3 with 16 tokens" in verdict.words
    waiting = sum(cta.state == "waiting" for cta in verdict.ctas)
    # every wait has exactly one cause, and every CTA at work is named by one
    assert sum(each.waiting for each in verdict.causes) == waiting
    working = {cta.number for cta in verdict.ctas if cta.state == "working"}
    assert {number for each in verdict.causes for number in each.ctas} == working
    order = {cta.number: cta.order for cta in verdict.ctas}
    youngest = max((cta.order for cta in verdict.ctas if cta.state == "waiting"), default=0)
    for each in verdict.causes:
        # what the named waiter waits for comes first; younger waits behind the same cause may be for more
        assert each.waiter is None or all(order[number] < order[each.waiter] for number in each.ctas[:1])
        assert each.waiter is None or all(order[number] < youngest for number in each.ctas)


@given(words=st.lists(WORD, min_size=10, max_size=10), name=st.text() | st.integers(), stage=st.sampled_from(Stage))
def test_whatever_the_other_words_are_it_is_recorded_and_read_back(
    words: list[int], name: object, stage: Stage
) -> None:
    names = ("pid", "generation", "abort", "begun", "begun_at_ns", "tokens", "layer", "ended", "submitted", "answered")
    snapshot = dataclasses.replace(ENDLESS, **dict(zip(names, words, strict=True)), stage=stage)  # type: ignore[arg-type]
    document = flight.record(
        snapshot, worker="a", cause="stall", quiet_s=0.1, now_ns=5, at=AT, context={"layer": name}
    )  # fmt: skip
    assert flight.parse(document).page["tokens"] == words[5]
    json.dumps(document, allow_nan=False)


def test_a_record_holds_all_that_is_known() -> None:
    infos = (LayerInfo("demo/layers.0", 64, "FP32", 16, 4), LayerInfo("demo/layers.3", 128, "BF16", 8, 2))
    snapshot = dataclasses.replace(
        ENDLESS, layer=1, slots=b"".join([slot(12, Phase.UP, 93, (0, 2), items=4), NOBODY, slot(13, 77, wait=9)])
    )
    document = flight.record(
        snapshot, worker="a", cause="stall", quiet_s=0.0612, now_ns=1_250_000_000, at=AT, ages_s=[0.4, 9.0, 0.2],
        stall_after_s=0.05, learned_gap_s=0.0125, versions={"fdmoe": "1.2.3"},
        context=flight.launch_context(infos, 1, device="cuda:0", kernel="hopper"),
        events=[{"at": "2026-01-02T03:04:05.000+00:00", "event": "route", "worker": "a", "share": math.inf}],
    )  # fmt: skip
    verdict = (
        "CTA 0 took up, expert 93, tile (0, 2) 400 ms ago and does not finish it; launch 7 of demo/layers.3 with 16 "
        "tokens: 0 waiting, 1 working, 0 left, 1 unreadable, of 2 CTAs"
    )
    assert document == {
        "format": 2, "at": "2026-01-02T03:04:05.678+00:00", "worker": "a", "generation": 2, "pid": 9, "cause": "stall",
        "verdict": verdict, "launch": 7, "layer": 1, "tokens": 16, "quiet_s": 0.0612, "begun_s_ago": 0.25,
        "stall_after_s": 0.05, "learned_gap_s": 0.0125, "exit_code": None,
        "page": {
            "pid": 9, "generation": 2, "abort": 0, "begun": 7, "begun_at_ns": 1_000_000_000, "tokens": 16, "layer": 1,
            "deadline_ns": 0, "ended": 6, "exit": "done", "items": [1, 2, 3, 4], "stage": "serving", "host_beats": 0,
            "answered": 4, "baseline_begun": 0, "baseline_ended": 0, "fused_batches": 0, "baseline_batches": 0,
            "submitted": 5,
        },
        "causes": [{"kind": "held", "ctas": [0], "waiter": None, "waiting": 0}],
        "slots": [
            {"cta": 0, "launch": 7, "ticket": 12, "phase": "up", "expert": 93, "row_tile": 0, "column_tile": 2,
             "wait": "none", "target": 0, "seen": 0, "items": 4, "state": "working", "unchanged_s": 0.4},
            # words that no kernel writes are kept as they are
            {"cta": 2, "launch": 7, "ticket": 13, "phase": 77, "expert": 0, "row_tile": 0, "column_tile": 0,
             "wait": 9, "target": 0, "seen": 0, "items": 0, "state": "unreadable", "unchanged_s": 0.2},
        ],
        "context": {"layer": "demo/layers.3", "experts": 8, "top_k": 2, "hidden_size": 128, "dtype": "BF16",
                    "device": "cuda:0", "kernel": "hopper"},
        "versions": {"fdmoe": "1.2.3"},
        "events": [{"at": "2026-01-02T03:04:05.000+00:00", "event": "route", "worker": "a", "share": "inf"}],
        "left_out": {},
    }  # fmt: skip


def test_what_is_not_known_is_left_open() -> None:
    snapshot = dataclasses.replace(page(), begun=0, begun_at_ns=0, ended=0)
    document = flight.record(
        snapshot, worker="b", cause="startup", quiet_s=0.0, now_ns=10**12, at=AT, stall_after_s=math.inf,
        context=flight.launch_context((), 0, device="cpu"),
    )  # fmt: skip
    record = flight.parse(document)
    assert (record.begun_s_ago, record.stall_after_s, record.learned_gap_s) == (0.0, None, None)
    assert (record.context, record.layer_name, record.slots) == ({"device": "cpu"}, "layer 3", ())


def test_the_ctas_that_the_causes_name_come_first() -> None:
    snapshot = page(slot(60, Phase.LEFT), *(slot(61, Phase.LEFT),) * 2, slot(40, Phase.UP, 1), slot(62, Phase.LEFT))
    document = flight.record(snapshot, worker="a", cause="stall", quiet_s=0.1, now_ns=5, at=AT)
    assert [each.cta for each in flight.parse(document).slots] == [3, 0, 1, 2, 4]
