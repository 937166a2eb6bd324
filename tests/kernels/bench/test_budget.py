"""The budget of CTAs beside a real second process, on the CPU; only the layer's own time is planted."""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import pytest
from fake_timer import FakeTimer

from fdmoe_kernels.bench import budget, neighbour
from fdmoe_kernels.bench.budget import main, under_mps
from fdmoe_kernels.bench.models import MODELS, Model
from fdmoe_kernels.bench.neighbour import Neighbour, NeighbourError


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", Model(hidden=32, intermediate=16, experts=4, top_k=2, renormalize=True))


def test_a_row_for_each_number_of_ctas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    right = budget.fused_moe

    def fused_moe(*args: object, programs: int, **kwargs: object) -> object:
        launched.append(programs)
        return right(*args, programs=programs, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(budget, "fused_moe", fused_moe)
    path = tmp_path / "budget.csv"
    words = ["--model", "tiny", "--tokens", "1", "--dtype", "float32", "--seconds", "0.1", "--programs", "1", "2"]
    assert main([*words, "--csv", str(path), "--commit", "abc1234"], FakeTimer(lambda _: 50.0), "cpu") == 0
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["tokens"], row["programs"], row["latency_us"]) for row in rows] == [
        ("tiny", "1", "1", "50.0"),
        ("tiny", "1", "2", "50.0"),
    ]
    # beside: a batch of launches at least for each, after the one that the timer made
    assert launched[:9] == [1] * 9
    assert launched[-9:] == [2] * 9
    for row in rows:
        alone, beside = float(row["neighbour_alone_us"]), float(row["neighbour_beside_us"])
        assert alone > 0
        # times have a tenth of a microsecond, and a small product on the CPU takes few of them
        assert (alone - 0.05) / (beside + 0.05) - 0.001 <= float(row["neighbour_share"])
        assert float(row["neighbour_share"]) <= (alone + 0.05) / (beside - 0.05) + 0.001
        assert float(row["latency_beside_us"]) > 100  # the interpreter
        assert (row["commit"], row["command"]) == (
            "abc1234",
            "python -m fdmoe_kernels.bench.budget --model tiny --tokens 1 --dtype float32 --seconds 0.1 --programs 1 2",
        )


def test_a_neighbour_measures_for_as_long_as_it_is_told_and_ends_with_its_context() -> None:
    with Neighbour("cpu") as process:
        began = time.monotonic()
        process.start(0.3)
        assert process.result() > 0
        assert 0.3 <= time.monotonic() - began < 10
        assert not process.answered()
        pid = process._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_neighbour_that_ends_or_is_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NeighbourError, match="the neighbour ended when it started, with code 1"), Neighbour("nothing"):
        pass
    monkeypatch.setattr(neighbour, "_ANSWER_TIMEOUT_S", -9.9)
    with Neighbour("cpu") as process:
        process.start(10.0)
        with pytest.raises(NeighbourError, match=r"said nothing for 0\.1 s while it measured"):
            process.result()
        process._process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--programs", "8", "0"], "argument --programs: '0' is no whole number from 1 up"),
        (["--programs", "65537"], "--programs has 65537; 65536 CTAs at most are allowed"),
        (["--tokens", "-1"], "argument --tokens: '-1' is no whole number from 1 up"),
    ],
)
def test_numbers_that_are_not_allowed_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments, FakeTimer(lambda _: 1.0), "cpu")
    assert message in capsys.readouterr().err


def test_mps_is_told_by_its_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(tmp_path))
    assert not under_mps()
    (tmp_path / "control").touch()
    assert under_mps()
