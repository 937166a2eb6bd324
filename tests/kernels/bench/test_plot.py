"""The picture: what it shows, and what it says when it cannot be drawn."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import ALONE, ROW

from fdmoe_kernels.bench.__main__ import main
from fdmoe_kernels.bench.plot import LINES, PlotError, draw, figure, points
from fdmoe_kernels.bench.rows import open_rows

ROWS = [
    replace(ROW, tokens=256, latency_us=330.0),
    ROW,
    replace(ROW, mode="eager", latency_us=280.0),
    replace(ROW, tokens=256, mode="eager", latency_us=331.0),
    replace(ROW, model="olmoe", latency_us=170.0),
]


def test_a_lines_points_are_its_models_and_modes_by_rising_tokens() -> None:
    found = {line.label: points(ROWS, "qwen3-30b-a3b", line) for line in LINES}
    assert found["one launch, graph"] == ([16, 256], [200.0, 330.0])
    assert found["one launch, eager"] == ([16, 256], [280.0, 331.0])
    assert found["best peer, graph"] == ([16, 256], [220.7, 220.7])
    assert points([ALONE], "qwen3-30b-a3b", LINES[0]) == ([], [])


def test_a_panel_a_model_with_the_machine_in_the_title(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = figure(ROWS)
    assert [panel.get_title() for panel in picture.axes] == ["qwen3-30b-a3b", "olmoe"]
    title = picture.get_suptitle()
    assert "NVIDIA H200" in title
    assert "torch 2.11.0" in title
    first = {line.get_label(): list(line.get_ydata()) for line in picture.axes[0].get_lines()}
    assert first["one launch, graph"] == [200.0, 330.0]
    assert first["floor"] == [182.3, 182.3]
    assert [text.get_text() for text in picture.legends[0].get_texts()] == [line.label for line in reversed(LINES)]
    draw(ROWS, [tmp_path / "k.png", tmp_path / "k.svg"])
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "k.svg").read_text()


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with open_rows(tmp_path / "rows.csv", resume=False) as writer:
        writer.write(ROW)
    with pytest.raises(SystemExit):
        main(["--plot-from", str(tmp_path / "rows.csv"), "--plot", str(tmp_path / "k.png")])
    assert "matplotlib is not installed; pip install 'fdmoe-kernels[plot]'" in capsys.readouterr().err.replace(
        "\n", " "
    )
    assert not (tmp_path / "k.png").exists()


def test_what_cannot_be_drawn_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlotError, match=r"ends in '.gif'; one of \('.png', '.svg', '.pdf'\)"):
        draw(ROWS, [tmp_path / "k.gif"])
    pytest.importorskip("matplotlib")
    with pytest.raises(PlotError, match="there are no rows"):
        figure([])
    with pytest.raises(PlotError, match=r"NVIDIA H100.*NVIDIA H200.*one device"):
        figure([ROW, replace(ROW, device="NVIDIA H100")])
