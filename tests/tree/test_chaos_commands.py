"""`fdmoe chaos` as it is typed: what a game day, a soak, and faults from outside print and write, and how they end."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from fdmoe_ops.chaos.soak import PHASES
from fdmoe_ops.chaos.tree import Tree, is_running, running_tree

# few layers and a small batch, since every start proves each layer, and the largest batch
TREE = ("--devices=cpu", "--model-layers=0,1", "--worker-max-batch-tokens=16", "--max-tokens=4")


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


# ---- a tree that is running


@pytest.fixture
def short_queue(demo: Path) -> Iterator[Tree]:
    """A tree whose interpreter has few of ten thousand requests to compute."""
    flags = ("--model-layers=1", "--gateway-max-queue-requests=64", "--gateway-upload-timeout-s=0.5", "--enable-chaos")
    with running_tree(f"--model-path={demo}", "--model-name=demo", "--worker-max-batch-tokens=16", *flags) as tree:
        yield tree
    # a watchdog that is killed leaves it
    shutil.rmtree(tree.run_dir, ignore_errors=True)


class OpenFiles(threading.Thread):
    """The most files that a process has open while this is entered."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._files, self._ended = Path(f"/proc/{pid}/fd"), threading.Event()
        self.most = 0

    def run(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, sum(1 for _ in self._files.iterdir()))

    def __enter__(self) -> OpenFiles:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


def counts(line: str, fault: str) -> dict[str, int]:
    """Of "flood: 200 9571, 503 429"."""
    name, _, words = line.strip().partition(": ")
    assert name == fault
    return {ending: int(count) for ending, _, count in (part.rpartition(" ") for part in words.split(", "))}


def test_clients_come_to_the_door_of_a_running_tree_and_its_watchdog_is_killed(short_queue: Tree) -> None:
    tree = short_queue

    def chaos(fault: str) -> str:
        done = fdmoe(fault, f"--run-dir={tree.run_dir}")
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    assert counts(chaos("malformed"), "malformed").keys() <= {"refused", "cut off", "200"}
    assert chaos("half-bodies") == "half-bodies: left 50\n"
    assert chaos("disconnects") == "disconnects: left 50\n"
    assert chaos("slow-clients") == "slow-clients: 408 20\n"
    before = memory_bytes(tree.status()["gateway"]["pid"])
    with OpenFiles(tree.status()["gateway"]["pid"]) as files:
        told = counts(chaos("flood"), "flood")
    connections = told.pop("connections", 10_000)
    assert set(told) == {"200", "503"}
    assert sum(told.values()) == 10_000
    assert told["200"] >= 64, "as many as may wait were served"
    assert files.most > connections, "all at once"
    # 11 KiB a connection were measured
    assert memory_bytes(tree.status()["gateway"]["pid"]) - before < connections * 40 * 1024
    assert tree.get("/readyz")[0] == 200
    events = {event["event"] for event in tree.status()["events"]}
    assert events & {"stall", "fence", "kill", "worker_gone", "gateway_exit", "gateway_frozen"} == set()
    processes = tree.processes()
    assert chaos("kill-watchdog") == (
        f"kill-watchdog: process {tree.process.pid} was killed, and its children end with it; whoever started it "
        "starts it again: systemd, the kubelet, or you with `fdmoe serve`\n"
    )
    assert tree.process.wait(10) == -signal.SIGKILL
    wait_until(lambda: not any(map(is_running, processes)))


def memory_bytes(pid: int) -> int:
    """The most that was resident."""
    found = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024
