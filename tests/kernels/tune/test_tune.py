"""The whole tuner on the CPU: planted times, wrong results and failures; and a run that ends and resumes."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from fdmoe_kernels import reference_moe
from fdmoe_kernels.bench.models import MODELS, Model
from fdmoe_kernels.hopper.tiles import HOPPER, HopperRow, default_tiles
from fdmoe_kernels.hopper.tiles import tiles_for as hopper_tiles_for
from fdmoe_kernels.tiles import TRITON, Precision, Tiles, rows_for
from fdmoe_kernels.timing import Run
from fdmoe_kernels.tune import trials
from fdmoe_kernels.tune.__main__ import main
from fdmoe_kernels.tune.progress import Progress
from fdmoe_kernels.tuning.form import Form
from fdmoe_kernels.tuning.tables import pinned, pinned_row, read_rows

# too small for no tile: every row is itself after it is fitted
SMALL = Model(hidden=256, intermediate=256, experts=4, top_k=2, renormalize=True)
ARGUMENTS = ["--form", "triton", "--models", "small", "--tokens", "2", "--dtype", "float32", "--minutes", "60"]


class Planted:
    """Stands in for the kernel and for the clock: a row's time is `cost`, and some rows are wrong or fail."""

    def __init__(self) -> None:
        self.launched: list[Tiles] = []
        self.timed: list[tuple[str, ...]] = []
        self.end_after: int | None = None
        self.precisions: set[Precision] = set()

    @staticmethod
    def cost(row: Tiles) -> float:
        steps = abs(math.log2(row.rows / 64)) + abs(math.log2(row.warps / 8)) + abs(row.stages - 3)
        return 100 * 1.05**steps

    def fused_moe(
        self, x: torch.Tensor, layer: Any, _: Any, *, out: torch.Tensor, precision: Precision
    ) -> torch.Tensor:
        self.precisions.add(precision)
        row = pinned_row(TRITON)
        assert row is not None
        self.launched.append(row)
        if row.stages == 4:
            raise RuntimeError("out of shared memory")
        out.copy_(reference_moe(x, layer))
        if row.programs > 1:  # fast, and wrong in one row of the batch
            out[0] *= 1.5
        return out

    def latency_us(self, variants: Mapping[str, Run], *, runs: int, budget_s: float) -> dict[str, float]:
        assert runs * budget_s > 0
        self.timed.append(tuple(variants))
        if self.end_after is not None and len(self.timed) > self.end_after:
            os.kill(os.getpid(), signal.SIGINT)
        times = {}
        for name, run in variants.items():
            run()
            row = self.launched[-1]
            times[name] = self.cost(row) * (0.1 if row.programs > 1 else 1.0)
        return times

    def captured(self, run: Run) -> Run:
        return run

    def operations(self, run: Run) -> int:
        raise AssertionError(f"a search counts no operations of {run}")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    monkeypatch.setitem(MODELS, "small", SMALL)
    planted = Planted()
    monkeypatch.setattr(trials, "fused_moe", planted.fused_moe)
    return planted


def _states(journal: Path) -> list[str]:
    return [line["state"] for line in map(json.loads, journal.read_text().splitlines()) if "end" in line]


def test_the_planted_optimum_is_written_and_what_is_wrong_or_fails_is_not(planted: Planted, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    assert main([*ARGUMENTS, "--output", str(output), "--commit", "abc1234"], planted, "cpu") == 0
    ((bound, row),) = read_rows(output, TRITON, "single")
    # the start has 1 stage and 1 warp; stages 3 beside the failing 4, programs 2 is wrong
    assert (bound, row.rows, row.warps, row.stages, row.programs) == (math.inf, 64, 8, 3, 1)
    states = _states(tmp_path / "table.triton.single.journal")
    assert states[0] == "measured"
    assert {"measured", "wrong", "failed"} <= set(states)
    description = json.loads(output.read_text())["description"]
    assert "commit abc1234: python -m fdmoe_kernels.tune --form triton" in description
    assert str(tmp_path) not in description


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_that_is_written_over() -> None:
    file = _Terminal()
    progress = Progress(file, cells=4)
    progress.show(1, "olmoe/16", 3, 0.9371, 61.4)
    progress.show(1, "o/1", 4, 0.9, 9.0)
    progress.line("o/1: 4 tried")
    first, second, last = file.getvalue().split("\r")[1:]
    assert first == "[#####...............] 1/4 olmoe/16: 3 tried, 0.937, 61 s left"
    assert second == "[#####...............] 1/4 o/1: 4 tried, 0.900, 9 s left".ljust(len(first))
    assert last == "o/1: 4 tried".ljust(len(second.rstrip())) + "\n"


def test_float32_on_tensor_cores_has_rows_of_its_own(planted: Planted, tmp_path: Path) -> None:
    output = tmp_path / "t.json"
    arguments = [word.replace("float32", "float32-tf32x3") for word in ARGUMENTS]
    assert main([*arguments, "--output", str(output)], planted, "cpu") == 0
    assert planted.precisions == {"tf32x3"}
    assert len(read_rows(output, TRITON, "tf32x3")) == 1
    assert read_rows(output, TRITON, "single") == ()


def test_a_wrong_candidate_is_never_timed(planted: Planted, tmp_path: Path) -> None:
    assert main([*ARGUMENTS, "--output", str(tmp_path / "t.json")], planted, "cpu") == 0
    wrong = [row for row in planted.launched if row.programs > 1]
    assert wrong
    assert len(wrong) == len(set(wrong))  # launched once, to be compared


def test_a_bad_candidate_is_let_go_after_a_first_look(planted: Planted, tmp_path: Path) -> None:
    planted.cost = lambda row: 100.0 if row.rows == 32 else 200.0  # type: ignore[method-assign]
    assert main([*ARGUMENTS, "--output", str(tmp_path / "t.json")], planted, "cpu") == 0
    slow = _states(tmp_path / "t.triton.single.journal").count("slow")
    assert slow == 2  # rows 16 and 64
    measured = _states(tmp_path / "t.triton.single.journal").count("measured")
    assert len(planted.timed) == 1 + 2 * (measured - 1) + slow


def test_a_stopped_search_resumes_where_it_was(planted: Planted, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    arguments = [*ARGUMENTS, "--output", str(output)]
    planted.end_after = 6
    assert main(arguments, planted, "cpu") == 130
    assert not output.exists()
    before = len(_states(tmp_path / "table.triton.single.journal"))
    first_rows = {row for row in planted.launched if row.stages != 4}
    again = Planted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "fused_moe", again.fused_moe)
        assert main([*arguments, "--resume"], again, "cpu") == 0
    ((_, row),) = read_rows(output, TRITON, "single")
    assert (row.rows, row.warps, row.stages) == (64, 8, 3)
    whole = Planted()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "fused_moe", whole.fused_moe)
        assert main([*arguments[:-1], str(tmp_path / "whole.json")], whole, "cpu") == 0
    # together the two runs tried what one run tries, and nothing twice
    assert len(_states(tmp_path / "table.triton.single.journal")) == len(
        _states(tmp_path / "whole.triton.single.journal")
    )
    assert before > 3
    assert first_rows


def test_the_time_ends_a_search_with_the_best_so_far(planted: Planted, tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    assert main([*ARGUMENTS[:-1], "0", "--output", str(output)], planted, "cpu") == 0
    ((_, row),) = read_rows(output, TRITON, "single")
    assert row == rows_for("interpreter", torch.float32)[0][1]


def test_a_form_that_does_not_run_here_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--form", "hopper", "--output", str(tmp_path / "t.json")], Planted(), "cpu")
    assert "hopper does not run on CPU" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_hopper_row_completes_what_it_leaves_open() -> None:
    layer = SMALL.random_layer(torch.bfloat16, "cpu")
    usual = default_tiles(300, experts=4, top_k=2, hidden_size=256, multiprocessors=2)
    assert hopper_tiles_for(layer, 300) == usual
    with pinned(HOPPER, HopperRow(token_tile=64, sort=1)):
        tiles = hopper_tiles_for(layer, 300)
    assert (tiles.token_tile, tiles.sort, tiles.slots, tiles.row_group) == (64, False, usual.slots, usual.row_group)
    with pinned(HOPPER, HopperRow(sort=2)):
        assert hopper_tiles_for(layer, 300).sort is True


@pytest.mark.parametrize("form", [TRITON, HOPPER], ids=lambda form: form.name)
def test_every_candidate_of_a_form_is_a_valid_row(form: Form[Any]) -> None:
    start = HopperRow() if form is HOPPER else rows_for("cuda", torch.bfloat16)[0][1]
    candidates = form.candidates(start)
    assert len(candidates) > 10
    assert [problem for row in candidates if (problem := form.problem(row))] == []
    assert len(candidates) == len(set(candidates))
