"""Histories of events and the annotations that they become: times, tags and text."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fdmoe_ops.annotator.chronicle import EVENTS, Annotation, Chronicle
from fdmoe_watchdog.metrics import SWITCHES
from fdmoe_watchdog.status import Event

NOON = datetime(2030, 1, 2, 12, 0, tzinfo=UTC)
NOON_MS = 1_893_585_600_000


def event(name: str, after_s: float = 0.0, **details: str | int | float) -> Event:
    at = (NOON + timedelta(seconds=after_s)).isoformat(timespec="milliseconds")
    return {"at": at, "event": name, "device": "cuda:0", **details}


def switch(before: str, after: str, reason: str, after_s: float = 0.0, worker: str = "a") -> Event:
    return event("path_switch", after_s, worker=worker, reason=reason, **{"from": before, "to": after})


def tell(*events: Event) -> list[Annotation]:
    """What each annotation is in the end, in the order in which they began."""
    chronicle = Chronicle("node-7")
    told: dict[int, Annotation] = {}
    for one in events:
        annotation = chronicle.tell(one)
        if annotation is not None:
            told[annotation.key] = annotation
    return list(told.values())


def tags(name: str, reason: str = "", device: str = "cuda:0") -> tuple[str, ...]:
    more = (f"reason:{reason}",) if reason else ()
    where = (f"device:{device}",) if device else ()
    return ("fdmoe", "host:node-7", *where, f"event:{name}", *more)


STALL = event("stall", worker="a", generation=1, cause="stall", launch=7, quiet_s=0.06, verdict="CTA 3 holds tile 5.")
LEFT = switch("fused", "baseline", "stall")
RECORD = event("flight_record", 0.01, worker="a", generation=1, file="flight-000003.json")


def test_a_stall_that_an_abort_ends() -> None:
    assert tell(
        STALL,
        LEFT,
        event("abort_ended", 0.002, worker="a"),
        RECORD,
        event("recovery", 0.012, rung="abort", worker="a", seconds=0.0121),
        switch("baseline", "shadow", "cooled_down", 2.0),
        event("buckets_proven", 3.0, worker="a", buckets="1"),
        switch("shadow", "fused", "proven", 3.5),
    ) == [
        Annotation(
            1, NOON_MS, None, tags("stall", "stall"),
            "node-7, cuda:0: worker a stalled: its kernel made no progress. CTA 3 holds tile 5.\n"
            "Flight record: flight-000003.json",
        ),
        Annotation(
            2, NOON_MS, NOON_MS + 3500, tags("path_switch", "stall"),
            "node-7, cuda:0: the baseline serves in the place of the fused path: its kernel made no progress.\n"
            "After 2 s the fused path is compared with it.\n"
            "After 3.5 s the fused path serves again.",
        ),
        Annotation(
            3, NOON_MS, NOON_MS + 12, tags("recovery", "abort"),
            "node-7, cuda:0: answers again after 0.0121 s: worker a, its kernel was ended.",
        ),
    ]  # fmt: skip


def test_a_worker_that_must_be_killed() -> None:
    annotations = tell(
        STALL,
        LEFT,
        RECORD,
        event("fence", 0.1, worker="a", generation=1, cause="stall"),
        event("route", 0.102, worker="b", generation=1),
        event("kill", 0.11, worker="a", generation=1),
        event("recovery", 0.13, rung="replay", worker="b", seconds=0.13),
        event("worker_gone", 0.2, worker="a", generation=1, exit_code=-9),
        event("worker_start", 0.4, worker="a", generation=2, reason="stall"),
    )
    assert [annotation.tags for annotation in annotations] == [
        tags("stall", "stall"), tags("path_switch", "stall"), tags("fence", "stall"), tags("recovery", "replay"),
        tags("worker_start", "stall"),
    ]  # fmt: skip
    assert annotations[0].text.endswith("\nFlight record: flight-000003.json")
    assert annotations[2] == Annotation(
        3, NOON_MS + 100, NOON_MS + 102, tags("fence", "stall"),
        "node-7, cuda:0: worker a (generation 1) is fenced: its kernel made no progress.\n"
        "Worker b took over after 0.002 s.",
    )  # fmt: skip
    assert (annotations[3].time_ms, annotations[3].end_ms) == (NOON_MS, NOON_MS + 130)
    assert annotations[4].text == (
        "node-7, cuda:0: worker a is started again (generation 2): its kernel made no progress."
    )  # fmt: skip


def test_a_worker_that_ends_has_its_flight_record_with_the_fence() -> None:
    annotations = tell(
        switch("fused", "baseline", "exit", worker=""),
        event("fence", worker="a", generation=4, cause="exit"),
        event("route", 0.003, worker="b", generation=2),
        event("flight_record", 0.01, worker="a", generation=4, file="flight-000004.json"),
    )
    assert annotations[1].text.splitlines()[1:] == [
        "Worker b took over after 0.003 s.", "Flight record: flight-000004.json",
    ]  # fmt: skip
    assert annotations[1].end_ms == NOON_MS + 3


def test_a_relapse_is_told_where_the_fall_back_is() -> None:
    (annotation,) = tell(
        LEFT,
        switch("baseline", "shadow", "cooled_down", 2.0),
        switch("shadow", "baseline", "mismatch", 2.5),
    )
    assert (
        annotation.text.splitlines()[2] == "After 2.5 s the comparisons end: a comparison with the baseline differed."
    )
    assert annotation.end_ms is None


def test_a_second_fall_back_is_another_annotation() -> None:
    back = switch("shadow", "fused", "proven", 1.0)
    first, second = tell(LEFT, back, LEFT | {"at": back["at"]})
    assert (first.end_ms, second.time_ms, second.end_ms) == (NOON_MS + 1000, NOON_MS + 1000, None)


def test_devices_are_told_apart() -> None:
    other = {"device": "cuda:1"}
    back = switch("shadow", "fused", "proven", 1.0)
    first, second = tell(LEFT, LEFT | other, back | other)
    assert (first.end_ms, second.end_ms) == (None, NOON_MS + 1000)
    assert "device:cuda:1" in second.tags


def test_a_return_of_which_the_beginning_was_not_seen() -> None:
    (annotation,) = tell(switch("shadow", "fused", "proven"))
    assert annotation == Annotation(
        1, NOON_MS, None, tags("path_switch", "proven"), "node-7, cuda:0: the fused path serves again."
    )  # fmt: skip


def test_what_needs_a_person() -> None:
    gone, out, end = tell(
        event("restart_budget_gone", worker="b"),
        event("device_out", reason="Xid 79: the GPU fell off the bus", node_action="drain_node"),
        {"at": STALL["at"], "event": "give_up", "reason": "no worker is left", "exit_code": 70},
    )
    assert gone.text == "node-7, cuda:0: no restart is left for b: the baseline serves from now on."
    assert out.text == (
        "node-7, cuda:0: the device is left out: Xid 79: the GPU fell off the bus. "
        "What has to be done to the node: drain_node."
    )
    assert (end.text, end.tags) == (
        "node-7: the tree ends with exit code 70: no worker is left.", tags("give_up", device="")
    )  # fmt: skip


def test_a_holder_that_is_started_again() -> None:
    first = event("weights_start", holder="weights", generation=1, reason="start")
    (annotation,) = tell(first, event("weights_start", 9.0, holder="weights", generation=2, reason="exit"))
    assert annotation.text == (
        "node-7, cuda:0: the holder weights is started again (generation 2): its process ended or was cut off."
    )  # fmt: skip


@pytest.mark.parametrize(
    "history",
    [
        [event("worker_start", worker="a", generation=1, reason="start")],
        [event("route", worker="a", generation=1)],
        [switch("baseline", "shadow", "cooled_down")],
        [event("flight_record", worker="a", generation=1, file="flight-000001.json")],
        [event("gateway_listening", url="http://127.0.0.1:1")],
    ],
    ids=lambda history: history[0]["event"],
)
def test_what_is_no_failover(history: list[Event]) -> None:
    assert tell(*history) == []


def test_a_flight_record_of_another_generation_is_not_this_ones() -> None:
    (annotation,) = tell(STALL, RECORD | {"generation": 2})
    assert "Flight record" not in annotation.text


def test_every_reason_to_fall_back_is_told_in_words() -> None:
    for reason in {reason for _, path, reason in SWITCHES if path == "baseline"}:
        (annotation,) = tell(LEFT | {"reason": reason})
        words = annotation.text.partition("fused path: ")[2]
        assert " " in words, reason


def test_a_reason_that_is_new_is_told_as_it_is() -> None:
    (annotation,) = tell(LEFT | {"reason": "cosmic"})
    assert annotation.text.endswith("in the place of the fused path: cosmic.")


def test_nothing_is_remembered_that_cannot_be_told_further() -> None:
    chronicle = Chronicle("node-7")
    for number in range(1000):
        chronicle.tell(STALL | {"generation": number})
        chronicle.tell(event("worker_start", worker="a", generation=number + 1, reason="stall"))
    assert len(chronicle._told) == 1


def test_the_names_are_the_watchdogs() -> None:
    assert {
        "stall", "path_switch", "fence", "route", "recovery", "worker_start", "weights_start", "restart_budget_gone",
        "flight_record", "device_out", "give_up",
    } == EVENTS  # fmt: skip
