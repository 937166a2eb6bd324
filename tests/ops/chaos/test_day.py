"""A day and a soak that are not clean: what is printed and written all the same, and how the command ends."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fdmoe_ops.chaos import day
from fdmoe_ops.chaos.game_day import Plan
from fdmoe_ops.chaos.load import Sent
from fdmoe_ops.chaos.plays import PLAYS
from fdmoe_ops.chaos.result import Result
from fdmoe_ops.chaos.soak import Soaked
from fdmoe_ops.cli import main

ANSWERED = Sent(1.0, 1.25, "fused")
LOST = Sent(1.0, 61.0, failed="503: no worker", retries=9)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["fdmoe", "chaos", *arguments, "--devices=cpu", "--max-tokens=2"])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_day_that_is_not_clean_goes_on_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        Result(PLAYS["stall"], 2, 3.0, [0.06, 0.05], [0.2, 0.1], [], [ANSWERED, LOST], final_path="fused"),
        Result(PLAYS["kill-probe"], 0, 9.0, problem="TimeoutError: none of probe_exit came", final_path="baseline"),
        Result(PLAYS["malformed"], 1, 2.0, [], [0.25], [], [ANSWERED], {"refused": 480}, "fused"),
    ]

    def play(plan: Plan, names: list[str]) -> Iterator[Result]:
        assert (plan.device, plan.clients, plan.compared) == ("cpu", 8, False)
        assert names == [result.play.name for result in results]
        yield from results

    monkeypatch.setattr(day, "run", play)
    report = tmp_path / "report"
    code = run_command(monkeypatch, "game-day", "--only=malformed,kill-probe,stall", f"--report={report}")
    output = capsys.readouterr()
    assert code == 1
    assert output.err == f"error: not every fault came to what it must come to: {report}/game-day.html says which\n"
    assert output.out.splitlines() == [
        "stall                  2 x       2 requests, 1 lost, 0 wrong  "
        "detect 50.0 / 60.0 ms, answer 100.0 / 200.0 ms  NOT OK 1 lost; 1 sent again in a repetition, of 0 at most",
        "kill-probe             0 x       0 requests, 0 lost, 0 wrong    NOT OK TimeoutError: none of probe_exit came; "
        "served by baseline in the end",
        "malformed              1 x       1 requests, 0 lost, 0 wrong  answer 250.0 / 250.0 ms  ok",
    ]
    with (report / "game-day.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["fault"], row["ok"], row["failed"], row["final_path"]) for row in rows] == [
        ("stall", "no", "1", "fused"), ("kill-probe", "no", "0", "baseline"), ("malformed", "yes", "0", "fused"),
    ]  # fmt: skip
    assert [row["ok"] for row in json.loads((report / "game-day.json").read_text())] == ["no", "no", "yes"]
    page = (report / "game-day.html").read_text()
    assert "3 faults, 3 injections, 3 requests: 1 lost, 0 wrong. 2 did not come to what they must." in page


def test_where_answers_are_compared_before_they_leave_none_may_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(plan: Plan, names: list[str]) -> Iterator[Result]:
        assert "--enable-recovery-compare-before-answer" in plan.flags
        for name in names:
            result = plan.result(name)
            result.repetitions, result.final_path, result.mismatches = 1, "fused", 1
            result.sent = [replace(ANSWERED, wrong=name == "corrupt")]
            yield result

    monkeypatch.setattr(day, "run", play)
    flags = ("--enable-recovery-compare-before-answer", "--only=wrong,corrupt", "--clients=3")
    assert run_command(monkeypatch, "game-day", *flags, f"--report={tmp_path}") == 1
    verdicts = [line.rpartition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert verdicts == ["ok", "NOT OK 1 wrong in a repetition, of 0 at most"]


def test_a_soak_with_a_false_alarm_ends_with_1_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = [
        Soaked(3.1, {"many": 1}, [ANSWERED], [{"event": "stall"}]),
        Soaked(6.2, {"many": 1, "idle": 1}, [ANSWERED, ANSWERED], [{"event": "stall"}, {"event": "kill"}]),
    ]
    monkeypatch.setattr(day, "running_tree", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(day, "soak", lambda *_: iter(phases))
    code = run_command(monkeypatch, "soak", f"--report={tmp_path}")
    output = capsys.readouterr()
    assert (code, output.err) == (1, f"error: the soak was not clean: {tmp_path}/soak.csv\n")
    assert output.out == "6 s, 2 requests: 2 false alarms, 0 lost, 0 wrong\n"
    with (tmp_path / "soak.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    found = [row[name] for name in ("seconds", "requests", "failed", "wrong", "false_alarms", "alarms", "phases")]
    assert found == ["6", "2", "0", "0", "2", "kill; stall", "many 1; idle 1"]


def test_a_soak_that_is_cut_off_has_a_report_of_what_it_had_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def play(*_: object) -> Iterator[Soaked]:
        yield Soaked(3.1, {"many": 1}, [ANSWERED, LOST])
        raise KeyboardInterrupt

    monkeypatch.setattr(day, "running_tree", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(day, "soak", play)
    assert run_command(monkeypatch, "soak", f"--report={tmp_path}") == 130
    with (tmp_path / "soak.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in ("seconds", "requests", "failed", "phases")] == ["3", "2", "1", "many 1"]


@pytest.mark.parametrize("command", ["game-day", "soak"])
def test_a_report_that_cannot_be_written_is_said_before_anything_is_started(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "file" / "report"
    (tmp_path / "file").touch()
    assert run_command(monkeypatch, command, f"--report={report}") == 2
    assert capsys.readouterr().err == f"error: --report: [Errno 20] Not a directory: '{report}'\n"


def test_a_model_that_is_none_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command(monkeypatch, "soak", f"--report={tmp_path}", f"--model-path={tmp_path / 'none'}")
    assert code == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
