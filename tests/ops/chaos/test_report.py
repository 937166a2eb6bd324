"""What a game day's report says of its repetitions, and when a fault has come to what it must."""

from __future__ import annotations

import contextlib
import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fdmoe_ops.chaos import door, report, wall_clock
from fdmoe_ops.chaos.catalogue import FAULTS
from fdmoe_ops.chaos.events import restarts_s
from fdmoe_ops.chaos.game_day import Plan, Stage, playable
from fdmoe_ops.chaos.load import Pool, Sent
from fdmoe_ops.chaos.plays import PLAYS
from fdmoe_ops.chaos.result import Result
from fdmoe_ops.chaos.soak import Soaked

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
ANSWERED = Sent(1.0, 1.5, "fused")


def result(name: str = "stall", *, sent: tuple[Sent, ...] = (ANSWERED,), **more: object) -> Result:
    values: dict[str, object] = {"repetitions": 3, "final_path": "fused", **more}
    return Result(PLAYS[name], sent=list(sent), **values)  # type: ignore[arg-type]


def test_a_row_holds_counts_and_milliseconds() -> None:
    sent = (
        ANSWERED,
        replace(ANSWERED, replayed=True),
        replace(ANSWERED, wrong=True),
        replace(ANSWERED, failed="503: full", retries=4),
        replace(ANSWERED, retries=1),
    )
    row = report.row(
        result(
            sent=sent, detect_s=[0.06, 0.05, 0.0701], answer_s=[0.2, 0.1], restart_s=[4.1, 4.3], seconds=7.9,
            notes={"503": 7, "200": 3},
        ),
        commit="abc",
    )  # fmt: skip
    assert row == {
        "fault": "stall", "place": "kernel", "repetitions": 3, "seconds": 8, "requests": 5, "failed": 1, "wrong": 1,
        "sent_again": 2, "replayed": 1, "detect_p50_ms": 60.0, "detect_p99_ms": 70.1, "detect_max_ms": 70.1,
        "answer_p50_ms": 100.0, "answer_p99_ms": 200.0, "answer_max_ms": 200.0, "restart_p50_ms": 4100.0,
        "restart_p99_ms": 4300.0, "restart_max_ms": 4300.0, "final_path": "fused", "ok": "no", "notes": "200 3; 503 7",
        "problem": "1 lost; 1 wrong in a repetition, of 0 at most; 2 sent again in a repetition, of 0 at most",
        "commit": "abc",
    }  # fmt: skip


def test_a_fault_that_nobody_decides_about_has_no_time_of_detection() -> None:
    row = report.row(result("stop-holder", answer_s=[0.25]))
    assert [row[f"detect_{time}_ms"] for time in ("p50", "p99", "max")] == ["", "", ""]
    assert row["answer_max_ms"] == 250.0


@pytest.mark.parametrize(("share", "found"), [(0.0, 1), (0.5, 5), (0.51, 6), (0.9, 9), (0.99, 10), (1.0, 10)])
def test_percentiles_by_nearest_rank(share: float, found: int) -> None:
    assert report.percentile([7, 3, 10, 1, 9, 2, 8, 4, 6, 5], share) == found
    assert report.percentile([4.0], share) == 4.0


@pytest.mark.parametrize(
    ("name", "change", "ok"),
    [
        ("stall", {}, True),
        ("stall", {"problem": "TimeoutError: none of stall came"}, False),
        ("stall", {"final_path": "baseline"}, False),
        ("failing-worker", {"final_path": "baseline"}, True),
        ("stall", {"sent": (replace(ANSWERED, failed="504: too late"),)}, False),
        ("stall", {"sent": (replace(ANSWERED, wrong=True),)}, False),
        ("stall", {"sent": (replace(ANSWERED, retries=1),)}, False),
        ("flood", {"notes": {"200": 9000, "503": 1000}}, True),
        ("flood", {"notes": {"503": 30_000}}, False),
        ("flood", {"notes": {"200": 2, "503": 29_998}}, False),
        ("flood", {"notes": {"200": 9000, "broken: ConnectionResetError": 1}}, False),
        ("flood", {"notes": {"200": 9000, "500": 1}}, False),
        ("flood", {"notes": {"200": 9000, "wrong": 1}}, False),
        ("slow-clients", {"notes": {"408": 60}}, True),
        ("slow-clients", {"notes": {"408": 59, "cut off": 1}}, True),
        ("slow-clients", {"notes": {"cut off": 60}}, False),
        ("slow-clients", {"notes": {"408": 59, "never cut off": 1}}, False),
        ("slow-clients", {"notes": {}}, False),
        ("flood", {"notes": {"200": 9000, "408": 1}}, False),
        ("malformed", {"notes": {"refused": 480, "cut off": 14, "200": 6}}, True),
        ("malformed", {"notes": {"refused": 499, "silence": 1}}, False),
    ],
)
def test_when_a_fault_has_come_to_what_it_must(name: str, change: dict[str, object], ok: bool) -> None:
    assert result(name, **change).ok is ok


WRONG, AGAIN = replace(ANSWERED, wrong=True), replace(ANSWERED, retries=1)


def repetitions(*each: tuple[Sent, ...]) -> dict[str, object]:
    """What was sent in each of them."""
    begun = [sum(map(len, each[:index])) for index in range(len(each))]
    return {"repetitions": len(each), "sent": sum(each, ()), "begun": begun}


@pytest.mark.parametrize(
    ("name", "change", "unmet"),
    [
        # a batch holds a request of each of eight clients, and one is wrong
        ("wrong", repetitions((WRONG,)), []),
        ("wrong", repetitions(8 * (WRONG,), 8 * (WRONG,)), []),
        ("wrong", repetitions((), 9 * (WRONG,), (WRONG,)), ["9 wrong in a repetition, of 8 at most"]),
        ("wrong", {"sent": 900 * (WRONG,)}, ["900 wrong in a repetition, of 8 at most"]),
        ("wrong", repetitions((ANSWERED,)), ["no answer was wrong, and none was found to be"]),
        ("wrong", {"mismatches": 1}, []),
        ("wrong", {"mismatches": 1, "compared": True}, []),
        ("wrong", {"mismatches": 1, "compared": True, "sent": (WRONG,)}, ["1 wrong in a repetition, of 0 at most"]),
        ("wrong", {"compared": True}, ["no answer was wrong, and none was found to be"]),
        # so in each of twenty
        ("corrupt", {"sent": 160 * (WRONG,)}, []),
        ("corrupt", {"sent": 161 * (WRONG,)}, ["161 wrong in a repetition, of 160 at most"]),
        ("corrupt", {"mismatches": 3, "compared": True, "sent": (WRONG,)}, ["1 wrong in a repetition, of 0 at most"]),
        ("nan", {"mismatches": 1, "sent": (WRONG,)}, ["1 wrong in a repetition, of 0 at most"]),
        # one request of each client, until the gateway is back
        ("kill-gateway", repetitions(8 * (AGAIN,), 8 * (AGAIN,)), []),
        ("kill-gateway", repetitions((), 25 * (AGAIN,)), ["25 sent again in a repetition, of 24 at most"]),
        ("kill-gateway", {"sent": (replace(ANSWERED, retries=500),)}, []),
        ("kill-gateway", {"sent": (replace(ANSWERED, retries=900),)}, ["one sent again 900 times, of 500 at most"]),
        ("stop-gateway", {"sent": (replace(ANSWERED, retries=900),)}, ["one sent again 900 times, of 500 at most"]),
        ("flood", {"notes": {"200": 9}, "sent": (replace(ANSWERED, retries=900),)},
         ["one sent again 900 times, of 750 at most"]),
        ("kill-watchdog", {"sent": (replace(ANSWERED, retries=900),)}, []),
        ("kill-watchdog", {"sent": (replace(ANSWERED, retries=1501),)}, ["one sent again 1501 times, of 1500 at most"]),
        ("stall", {"final_path": ""}, ["served by nobody in the end"]),
    ],
)  # fmt: skip
def test_how_many_answers_may_be_wrong_and_requests_sent_again(
    name: str, change: dict[str, object], unmet: list[str]
) -> None:
    assert result(name, clients=8, **change).unmet == unmet


@pytest.mark.parametrize(("told", "problem"), [({"200": 1, "503": 9}, ""), ({"503": 10}, "200 0, where there must be")])
def test_each_flood_must_be_answered(told: dict[str, int], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, pool = SimpleNamespace(gateway_address="127.0.0.1:80"), Pool("m", "FP32", 1, (b"1234",), (torch.ones(1, 1),))
    stage = Stage(Plan((), "cpu", pool, 8, {}), tree, None)  # type: ignore[arg-type]
    monkeypatch.setitem(door.VISITS, "flood", lambda *_: Counter(told))
    # others were
    flood = result("flood", notes={"200": 90})
    with pytest.raises(AssertionError, match=problem) if problem else contextlib.nullcontext():
        stage._inject("flood", flood)
    assert flood.notes == Counter(told) + Counter({"200": 90})


def test_the_report_is_three_files_of_the_same_rows(tmp_path: Path) -> None:
    rows = [
        report.row(
            result(answer_s=[0.1], detect_s=[0.05]), device="a <GPU>", versions="v", commit="c", command="fdmoe"
        ),
        report.row(result("wrong", sent=(replace(ANSWERED, wrong=True),), answer_s=[0.3])),
        report.row(result("nan", problem="TimeoutError: <none>")),
    ]
    rows = [{**dict.fromkeys(rows[0], ""), **row} for row in rows]
    paths = report.write(tmp_path / "new", rows)
    assert [path.name for path in paths] == ["game-day.csv", "game-day.json", "game-day.html"]
    assert json.loads(paths[1].read_text()) == rows
    with paths[0].open() as file:
        read = list(csv.DictReader(file))
    assert [row["fault"] for row in read] == ["stall", "wrong", "nan"]
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]
    page = paths[2].read_text()
    assert "3 faults, 9 injections, 3 requests: 0 lost, 1 wrong, 1 of them by the faults that only" in page
    assert "1 did not come to what they must." in page
    assert "a &lt;GPU&gt;" in page
    assert "TimeoutError: &lt;none&gt;" in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", ""), "no part of it lies elsewhere"


def test_rows_are_read_back_and_a_page_of_several_parts_names_each_commit(tmp_path: Path) -> None:
    path = RESULTS / "game-day-h200.csv"
    rows = report.read_csv(path)
    again = tmp_path / "again.csv"
    report.write_csv(again, rows)
    assert again.read_text() == path.read_text()
    assert all(isinstance(row["requests"], int) for row in rows)
    parts = [rows[0] | {"commit": "1111111"}, rows[1] | {"commit": "2222222"}]
    page = report.page(parts)
    assert "1111111" in page
    assert "2222222" in page
    assert "2 commands, which the CSV has" in page
    assert "1111111" not in report.page([row | {"commit": "1111111"} for row in parts])


def test_a_restart_counts_from_the_first_fence_of_a_worker_until_it_is_ready() -> None:
    def event(name: str, second: int, worker: str = "a", **more: float) -> dict[str, object]:
        return {"at": f"2026-11-29T08:00:{second:02}.000+00:00", "event": name, "worker": worker, **more}

    happened = [
        event("fence", 1), event("fence", 2, "b"), event("worker_ready", 4, "b", seconds=1.5),
        event("fence", 7), event("worker_ready", 9, seconds=1.5), event("worker_ready", 10, seconds=1.5),
    ]  # fmt: skip
    # of the last one nobody saw it go
    assert restarts_s(happened) == pytest.approx([2, 8, 1.5], abs=0.01)


def test_a_soak_is_clean_without_an_alarm_and_without_a_loss() -> None:
    soaked = Soaked(480.4, {"many": 2, "idle": 1}, [ANSWERED], [])
    assert soaked.ok
    assert report.soak_row(soaked, commit="abc") == {
        "seconds": 480, "requests": 1, "failed": 0, "wrong": 0, "false_alarms": 0, "alarms": "",
        "phases": "many 2; idle 1", "commit": "abc",
    }  # fmt: skip
    alarmed = replace(soaked, alarms=[{"event": "stall"}, {"event": "kill"}, {"event": "stall"}])
    assert not alarmed.ok
    assert (report.soak_row(alarmed)["false_alarms"], report.soak_row(alarmed)["alarms"]) == (3, "kill; stall")
    for change in ({"wrong": True}, {"failed": "504"}, {"retries": 1}):
        assert not replace(soaked, sent=[replace(ANSWERED, **change)]).ok


def test_readme_names_the_soak_that_was_measured() -> None:
    root = Path(__file__).parents[3]
    with (root / "benchmarks/results/soak-cpu.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    words = " ".join((root / "README.md").read_text().split())
    assert f"A soak of {row['seconds']} s" in words
    assert f"{row['requests']} requests, {row['false_alarms']} false alarms, {row['failed']} lost" in words


def test_every_fault_can_be_played_and_says_what_it_must_come_to() -> None:
    assert [fault.name for fault in FAULTS] == list(PLAYS)
    assert {*playable(), "wall-clock"} == set(PLAYS)


def test_without_a_compiler_there_is_no_wall_clock_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wall_clock, "COMPILER", "no-such-compiler")
    assert playable() == [fault.name for fault in FAULTS if fault.name != "wall-clock"]


@pytest.mark.parametrize("name", ["game-day-cpu", "game-day-h200"])
def test_readmes_table_is_the_measured_one(name: str) -> None:
    root = Path(__file__).parents[3]
    with (root / f"benchmarks/results/{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    between = (root / "README.md").read_text().partition(f"<!-- {name} -->\n")[2]
    assert between.partition(f"<!-- /{name} -->\n")[0] == report.table(rows)
    assert {row["ok"] for row in rows} == {"yes"}
