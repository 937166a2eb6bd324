"""The table of goals and limits, and that README's is the one of its results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import ALONE, ROW

from fdmoe_kernels.bench.__main__ import main
from fdmoe_kernels.bench.limits import BEATS, goal, limits_table
from fdmoe_kernels.bench.profiling import ProfileRow, read_profile
from fdmoe_kernels.bench.rows import read_rows

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "benchmarks" / "results" / "kernel-h200.csv"
PROFILE = ROOT / "benchmarks" / "results" / "profile-h200.csv"
SEEN = ProfileRow(
    model="qwen3-30b-a3b", tokens=16, form="portable", duration_us=210.9, sm_ghz=1.78, dram_share=0.82, l2_share=0.834,
    tensor_share=0.098, issue_share=0.125, begin_us=18.0, end_us=9.0, dram_read_flowing=0.951, tensor_flowing=0.115,
    stalls="long_scoreboard 42%, barrier 20%", device="NVIDIA H200", versions="torch 2.11.0", commit="abc1234",
    command="python -m fdmoe_kernels.bench.profiling",
)  # fmt: skip


def test_readmes_table_is_the_results() -> None:
    readme = (ROOT / "README.md").read_text()
    between = readme.partition("<!-- limits-h200 -->\n")[2].partition("<!-- /limits-h200 -->\n")[0]
    assert between == limits_table(read_rows(RESULT), read_profile(PROFILE))


def test_every_cell_that_misses_a_goal_has_its_profile() -> None:
    profiled = {(row.model, row.tokens) for row in read_profile(PROFILE)}
    for row in read_rows(RESULT):
        if row.best_peer_us is None:
            continue
        wanted = goal(row.tokens)
        behind = row.latency_us > row.best_peer_us or row.beats_share > BEATS
        if behind or (wanted is not None and row.floor_share < wanted):
            assert (row.model, row.tokens) in profiled


@pytest.mark.parametrize(
    ("tokens", "share"), [(1, 0.6), (2, None), (16, 0.9), (256, 0.9), (1024, None), (4096, 0.8), (16384, 0.8)]
)
def test_the_goals_are_those_of_the_promises(tokens: int, share: float | None) -> None:
    assert goal(tokens) == share


def test_what_misses_its_goal_is_in_bold_type() -> None:
    ahead = replace(
        ROW, latency_us=200.0, best_peer_us=220.8, best_peer_ratio=1.104, floor_share=0.911, beats_share=-0.001
    )
    behind = replace(
        ROW, latency_us=200.1, best_peer_us=200.0, best_peer_ratio=1.0, floor_share=0.8994, beats_share=0.0104
    )
    alone = replace(behind, tokens=1024, power_w=None)
    lines = limits_table([ahead, behind, alone, ALONE, replace(ROW, mode="eager")], [SEEN]).splitlines()
    seen = "211 | 18 | 9 | 95% | 12% | 83% | 1.78 | 412 | long_scoreboard 42%, barrier 20% |"
    assert lines[2:] == [
        f"| qwen3-30b-a3b | 16 | 1.104 | 91.1% / 90% | -0.1% | {seen}",
        f"| qwen3-30b-a3b | 16 | **1.000** | **89.9% / 90%** | **+1.0%** | {seen}",
        "| qwen3-30b-a3b | 1024 | **1.000** | 89.9% | **+1.0%** | – | – | – | – | – | – | – | – | – |",
    ]


def test_the_command_line_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--limits-from", str(RESULT), str(PROFILE)]) == 0
    assert capsys.readouterr().out == limits_table(read_rows(RESULT), read_profile(PROFILE))


def _renamed(text: str) -> str:
    return text.replace("end_us", "tail_us", 1)


def _with_a_word(text: str) -> str:
    """For the first row's duration."""
    first, second, rest = text.split("\n", 2)
    cells = second.split(",")
    cells[3] = "long"
    return "\n".join([first, ",".join(cells), rest])


@pytest.mark.parametrize(("change", "named"), [(_renamed, "has the columns"), (_with_a_word, "line 2: ")])
def test_a_file_that_is_no_profile_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[str], str], named: str
) -> None:
    path = tmp_path / "profile.csv"
    path.write_text(change(PROFILE.read_text()))
    with pytest.raises(SystemExit):
        main(["--limits-from", str(RESULT), str(path)])
    assert named in capsys.readouterr().err
