"""The Markdown table, and that README's is the one of its result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_rows import ALONE, ROW

from fdmoe_kernels.bench.__main__ import main
from fdmoe_kernels.bench.peers import best_peer
from fdmoe_kernels.bench.rows import read_rows
from fdmoe_kernels.bench.table import markdown_table, summary

ROOT = Path(__file__).parents[3]
RESULT = ROOT / "benchmarks" / "results" / "kernel-h200.csv"


def test_readmes_table_is_the_results() -> None:
    readme = (ROOT / "README.md").read_text()
    between = readme.partition("<!-- kernel-h200 -->\n")[2].partition("<!-- /kernel-h200 -->\n")[0]
    assert between == markdown_table(read_rows(RESULT))


def test_the_results_ratios_follow_from_their_times() -> None:
    # the file has times to a tenth of a microsecond
    for row in read_rows(RESULT):
        peer = best_peer(row.model, row.tokens, row.dtype, row.mode)
        assert (row.best_peer, row.best_peer_us) == (peer or (None, None))
        assert (peer is None) == (row.dtype.startswith("float32"))
        # in float32 torch has no grouped product, and the loop in its place is not for a graph
        assert (row.baseline_us is None) == (row.dtype.startswith("float32") and row.mode == "graph")
        if row.best_peer_us is not None:
            assert row.best_peer_ratio == pytest.approx(row.best_peer_us / row.latency_us, abs=2e-3, rel=2e-3)
        if row.baseline_us is not None:
            assert row.speedup == pytest.approx(row.baseline_us / row.latency_us, abs=5e-3, rel=2e-3)
        assert row.floor_share == pytest.approx(row.floor_us / row.latency_us, abs=2e-3)


def test_a_line_a_cell() -> None:
    lines = markdown_table([ROW, ALONE]).splitlines()
    assert lines[0].split(" | ")[3:7] == ["one launch, us", "back to back, us", "best peer, us", "ratio"]
    assert lines[2:4] == [
        "| qwen3-30b-a3b | 16 | graph | 200.0 | 200.0 | 220.7 sgl_tuned | 1.10 | 400.0 | 2.00 | 91% | 6.1 | 3920 "
        "| +0.5% | 1 | 2.9e-03 |",
        "| qwen3-30b-a3b, float32 | 16 | graph | 200.0 | 200.0 | – | – | – | – | 91% | 6.1 | 3920 | +0.5% | 1 "
        "| 2.9e-03 |",
    ]


def test_the_geometric_mean_is_of_the_graph_cells_with_a_peer() -> None:
    steady: Any = {"no_beats_us": 160.0, "beats_share": 0.25}
    rows = [
        replace(ROW, latency_us=100.0, best_peer_us=200.0, **steady),
        replace(ROW, latency_us=100.0, best_peer_us=50.0, tokens=64, **steady),
        replace(ROW, latency_us=100.0, best_peer_us=144.0, tokens=1, **steady),
        replace(ROW, latency_us=100.0, best_peer_us=9e9, mode="eager"),
        ALONE,
    ]
    # the cube root of 2 * 0.5 * 1.44
    assert summary(rows) == (
        "Against the best peer of each of the 3 graph cells: 1.13 times as fast in the geometric mean, "
        "slower in 1 of them; launched back to back, without the baseline in between, 0.56 and 2."
    )
    assert summary([ALONE]) == "No graph cell has a peer to compare with."


def test_the_command_line_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--table-from", str(RESULT)]) == 0
    assert capsys.readouterr().out == markdown_table(read_rows(RESULT))
