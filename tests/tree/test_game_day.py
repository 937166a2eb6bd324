"""Every fault of the catalogue, once, in real trees under load: what CI can say of a game day."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from fdmoe_ops.chaos.game_day import playable

# ten thousand requests take the interpreter half a minute; tests/ops/gateway/test_flood.py has them without it
FAULTS = [name for name in playable() if name != "flood"]


@pytest.mark.timeout(1200)
def test_every_fault_costs_nobody_an_answer(tmp_path: Path) -> None:
    command = (
        sys.executable, "-P", "-m", "fdmoe_ops.cli", "chaos", "game-day", "--devices", "cpu", "--report", str(tmp_path),
        "--abortable", "1", "--others", "1", "--clients", "4", "--commit", "abc", "--only", ",".join(FAULTS),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "game-day.csv").open() as file:
        rows = {row["fault"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == sorted(FAULTS)
    for name, row in rows.items():
        assert (row["ok"], row["repetitions"], row["failed"], row["problem"]) == ("yes", "1", "0", ""), row
        assert int(row["requests"]) > 0
        assert row["wrong"] == "0" or name == "wrong", row
        assert row["command"].startswith("fdmoe chaos game-day --devices cpu"), row
        assert "--commit" not in row["command"], row
