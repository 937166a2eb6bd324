"""Every fault of the catalogue, once, in real trees under load, and watched by our alerts: CI's game day."""

from __future__ import annotations

import csv
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from monitoring import MISSING, Monitoring, load_rules, monitoring, name_targets

from fdmoe_ops.chaos import game_day
from fdmoe_ops.chaos.game_day import playable
from fdmoe_ops.chaos.result import Result
from fdmoe_ops.chaos.tree import Tree
from fdmoe_ops.cli import main

# Of ten thousand requests as many as may wait take the interpreter half a minute: test_chaos_commands has them with a
# short queue, tests/ops/gateway/test_flood.py without an interpreter. The others are in tests of their own beside this
# one, which look closer: test_recovery, test_life.
ELSEWHERE = {"flood", "stall", "endless", "stop-gateway", "kill-watchdog"}
FAULTS = [name for name in playable() if name not in ELSEWHERE]
# five minutes of the rules take 75 seconds: what a fault of some seconds raises then, it raises in earnest
FACTOR = 4.0
# Workers that start take the processors from the interpreter, which then is slower than the objective.
RESTARTS = {
    "illegal", "kill-active", "stop-active", "kill-standby", "stop-standby", "kill-workers", "stop-workers",
    "block-worker", "kill-holder", "truncate-page", "noise-page", "failing-worker", "shared-memory-full",
    "memory-at-warm-up",
}  # fmt: skip
# by which faults an alert may be raised, and so many of them it takes: a day has more restarts than any service
RAISED_BY = {
    "FdmoeShadowMismatch": ({"nan", "corrupt"}, 1),
    "FdmoeRecoveryFailed": ({"failing-worker"}, 1),
    "FdmoeRestartLoop": (RESTARTS, 2),
    "FdmoeLatencyBurn": (RESTARTS | {"slow", "busy-neighbour"}, 1),
}
# where a machine has more to do than it can, its watchdog is late, and that is true
OF_THE_MACHINE = {"FdmoeWatchdogLagging"}


@pytest.fixture
def begun() -> list[tuple[str, float]]:
    """The faults that have been played, and since when (Unix time)."""
    return []


@pytest.fixture
def watch(
    tmp_path: Path, begun: list[tuple[str, float]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Monitoring | None]:
    """Prometheus and Alertmanager, which scrape the day's trees as long as they are wanted."""
    if MISSING:
        yield None
        return
    targets = tmp_path / "targets.json"

    class Watched(Tree):
        def __init__(self, directory: Path, *flags: str, environment: dict[str, str] | None = None) -> None:
            super().__init__(directory, *flags, environment=environment)
            name_targets(targets, [self.gateway_address, f"127.0.0.1:{self.watchdog_port}"])

        def end(self) -> None:
            name_targets(targets, [])
            super().end()

    monkeypatch.setattr(game_day, "Tree", Watched)
    play = game_day.Stage.play

    def noted(stage: game_day.Stage, result: Result, repetitions: int) -> Result:
        begun.append((result.play.name, time.time()))
        return play(stage, result, repetitions)

    monkeypatch.setattr(game_day.Stage, "play", noted)
    name_targets(targets, [])
    with monitoring(tmp_path, targets, load_rules(FACTOR)) as watching:
        yield watching


@pytest.mark.timeout(1200)
def test_every_fault_costs_nobody_an_answer_and_raises_no_false_alarm(
    tmp_path: Path,
    watch: Monitoring | None,
    begun: list[tuple[str, float]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # two clients fill no larger batch, and every start proves the largest, for each layer
    arguments = (
        "--only", ",".join(FAULTS), "--abortable", "1", "--others", "1", "--clients", "2", "--max-tokens", "4",
        "--devices", "cpu", "--model-layers", "0,1", "--worker-max-batch-tokens", "16",
    )  # fmt: skip
    report = ("--commit", "abc", "--report", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["fdmoe", "chaos", "game-day", *report, *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0, (tmp_path / "game-day.csv").read_text()
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in printed) == sorted(FAULTS)
    assert all(line.endswith("  ok") for line in printed), printed
    with (tmp_path / "game-day.csv").open() as file:
        rows = {row["fault"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(FAULTS)
    for name, row in rows.items():
        assert (row["ok"], row["repetitions"], row["failed"], row["problem"]) == ("yes", "1", "0", ""), row
        assert int(row["requests"]) > 0
        assert row["wrong"] == "0" or name in ("wrong", "corrupt"), row
        assert row["command"] == f"fdmoe chaos game-day {shlex.join(arguments)} --report DIR", row
    if watch is not None:
        raised = {notice.name for notice in watch.receiver.notices if notice.status == "firing"}
        assert "FdmoeShadowMismatch" in raised
        for notice in watch.receiver.notices:
            if notice.name not in OF_THE_MACHINE:
                faults, least = RAISED_BY.get(notice.name, (set(), 1))
                before = {name for name, since in begun if name in faults and since < notice.began}
                assert len(before) >= least, f"{notice} after {begun}"
