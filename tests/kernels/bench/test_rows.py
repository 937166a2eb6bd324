"""The result's CSV: every row is on disk when it has been measured, and a second run goes on where the first ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import ALONE, ROW

from fdmoe_kernels.bench.rows import COLUMNS, open_rows, read_rows

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"
FIRST = [
    "model", "tokens", "dtype", "mode", "latency_us", "baseline_us", "best_peer_us", "floor_us", "operations",
    "relative_error",
]  # fmt: skip


def test_the_columns_begin_with_what_readers_rely_on() -> None:
    assert COLUMNS[: len(FIRST)] == FIRST
    assert (RESULTS / "kernel-h200.csv").read_text().splitlines()[0] == ",".join(COLUMNS)


def test_rows_come_back_as_they_were_written_each_as_soon_as_it_is_known(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with open_rows(path, resume=False) as writer:
        for count, row in enumerate((ROW, ALONE), start=1):
            writer.write(row)
            assert read_rows(path) == [ROW, ALONE][:count]


@pytest.mark.parametrize("torn", ["", "mixtral-8x7b,1", 'mixtral-8x7b,1,bfloat16,eager,20.1,"NVI'])
def test_a_resumed_file_keeps_its_whole_rows_and_drops_a_torn_one(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "rows.csv"
    with open_rows(path, resume=False) as writer:
        writer.write(ROW)
    with path.open("a") as file:
        file.write(torn)
    with open_rows(path, resume=True) as writer:
        assert writer.done == {("qwen3-30b-a3b", 16, "bfloat16", "graph")}
        writer.write(ALONE)
    assert read_rows(path) == [ROW, ALONE]


def test_without_resume_the_file_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for _ in range(2):
        with open_rows(path, resume=False) as writer:
            assert writer.done == set()
            writer.write(ROW)
    assert read_rows(path) == [ROW]


@pytest.mark.parametrize(
    "other", [replace(ROW, commit="def5678"), replace(ROW, device="NVIDIA H100"), replace(ROW, versions="torch 3")]
)
def test_rows_of_another_origin_do_not_mix(tmp_path: Path, other: object) -> None:
    path = tmp_path / "rows.csv"
    with open_rows(path, resume=False) as writer:
        writer.write(ROW)
    with open_rows(path, resume=True) as writer, pytest.raises(ValueError, match=r"abc1234.*both must agree"):
        writer.write(other)  # type: ignore[arg-type]
    assert read_rows(path) == [ROW]


def test_other_columns_and_other_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("model,tokens\nolmoe,1\n")
    with pytest.raises(ValueError, match=r"rows.csv has the columns \['model', 'tokens'\]; .*'relative_error'"):
        read_rows(path)
    with open_rows(path, resume=False) as writer:
        writer.write(ROW)
    path.write_text(path.read_text().replace(",200.0,", ",fast,"))
    with pytest.raises(ValueError, match="line 2: latency_us is 'fast'; a number is needed"):
        read_rows(path)
