"""`fdmoe chaos game-day` and `fdmoe chaos soak` as they are typed: what they print and write, and how they end."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

from fdmoe_ops.chaos.soak import PHASES

# a small batch, since every start proves the largest
TREE = ("--devices=cpu", "--worker-max-batch-tokens=16", "--max-tokens=4")


def fdmoe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-P", "-m", "fdmoe_ops.cli", "chaos", *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_game_day_prints_a_line_and_writes_a_row_of_its_fault(tmp_path: Path) -> None:
    day = ("game-day", "--only=kill-probe", "--abortable=1", "--others=1", "--clients=1", *TREE)
    done = fdmoe(*day, f"--report={tmp_path}", "--commit=abc")
    assert (done.returncode, done.stderr) == (0, ""), done
    (row,) = read_rows(tmp_path / "game-day.csv")
    assert int(row["requests"]) > 0
    found = {name: row[name] for name in ("fault", "place", "repetitions", "failed", "wrong", "sent_again", "replayed")}
    assert found == {
        "fault": "kill-probe", "place": "tree", "repetitions": "1", "failed": "0", "wrong": "0", "sent_again": "0",
        "replayed": "0",
    }  # fmt: skip
    assert (row["final_path"], row["ok"], row["problem"], row["commit"]) == ("fused", "yes", "", "abc")
    assert row["command"] == f"fdmoe chaos {' '.join(day)} --report DIR"
    assert row["device"].startswith("CPU, ")
    # no worker had to be started again
    assert (row["restart_p50_ms"], row["restart_max_ms"]) == ("", "")
    detect, answer = row["detect_p50_ms"], row["answer_p50_ms"]
    assert 0 < float(detect) < 10_000
    assert 0 < float(answer) < 10_000
    assert done.stdout == (
        f"{'kill-probe':<20}   1 x  {row['requests']:>6} requests, 0 lost, 0 wrong  "
        f"detect {detect} / {detect} ms, answer {answer} / {answer} ms  ok\n"
    )
    (document,) = json.loads((tmp_path / "game-day.json").read_text())
    assert {name: str(value) for name, value in document.items()} == row
    page = (tmp_path / "game-day.html").read_text()
    assert f"1 faults, 1 injections, {row['requests']} requests: 0 lost, 0 wrong." in page
    assert "Every fault came to what it must come to." in page


def test_a_soak_plays_every_phase_and_finds_no_fault(tmp_path: Path) -> None:
    done = fdmoe("soak", "--minutes=0.1", *TREE, f"--report={tmp_path}", "--commit=abc")
    assert (done.returncode, done.stderr) == (0, ""), done
    (row,) = read_rows(tmp_path / "soak.csv")
    assert int(row["requests"]) > 0
    assert int(row["seconds"]) >= 6
    assert (row["failed"], row["wrong"], row["false_alarms"], row["alarms"]) == ("0", "0", "0", "")
    assert row["phases"] == "; ".join(f"{name} 1" for name, _, _ in PHASES)
    assert (row["commit"], row["command"]) == ("abc", f"fdmoe chaos soak --minutes=0.1 {' '.join(TREE)} --report DIR")
    assert done.stdout == f"{row['seconds']} s, {row['requests']} requests: 0 false alarms, 0 lost, 0 wrong\n"
    assert [path.name for path in tmp_path.iterdir()] == ["soak.csv"]


def test_a_fault_that_nobody_knows_is_named_before_anything_is_started(tmp_path: Path) -> None:
    done = fdmoe("game-day", "--only=kill-probe,kill-all", *TREE, f"--report={tmp_path / 'day'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: only names 'kill-all'; here can be played: stall, endless, ")
    assert "kill-probe, " in done.stderr
    assert not (tmp_path / "day").exists()
