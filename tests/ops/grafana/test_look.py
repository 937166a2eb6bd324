"""`fdmoe dashboards diff` and `list`: what is where, without a write."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from fake_grafana import FakeGrafana
from typer.testing import CliRunner, Result

from fdmoe_ops.cli.dashboards import app
from fdmoe_ops.version import version

Run = Callable[..., Result]


def test_nothing_differs_after_a_push(run: Run) -> None:
    run("push")
    result = run("diff")
    assert (result.exit_code, result.stdout) == (0, "nothing differs\n")


def test_a_diff_of_what_somebody_has_edited(run: Run, grafana: FakeGrafana) -> None:
    run("push")
    grafana.somebody_saves("fdmoe-gpu", title="GPUs", tags=["mine"])
    before = grafana.writes()
    result = run("diff")
    assert result.exit_code == 1
    shown = result.stdout.splitlines()
    assert shown[:2] == ["--- fdmoe-gpu in Grafana, version 2", f"+++ fdmoe-gpu of fdmoe-ops {version()}"]
    assert [line for line in shown[2:] if line[0] in "+-"] == [
        '-  "tags": [',
        '-    "mine"',
        "-  ],",
        '-  "title": "GPUs",',
        '+  "title": "fdmoe GPU",',
    ]
    assert grafana.writes() == before


def test_a_diff_of_what_is_not_there(run: Run, grafana: FakeGrafana) -> None:
    result = run("diff")
    assert result.exit_code == 1
    shown = result.stdout.splitlines()
    assert shown[:2] == ["--- nothing", f"+++ fdmoe-gpu of fdmoe-ops {version()}"]
    assert '+  "uid": "fdmoe-service"' in shown
    assert not [line for line in shown if line.startswith("-") and not line.startswith("---")]
    assert grafana.writes() == []


def test_a_diff_names_another_folder(run: Run, grafana: FakeGrafana) -> None:
    run("push")
    grafana.dashboards["fdmoe-gpu"].folder = ""
    result = run("diff")
    assert (result.exit_code, result.stdout) == (1, "fdmoe-gpu: from folder no folder to folder fdmoe\n")


def test_the_numbers_that_grafana_counts_are_no_difference(run: Run, directory: Path) -> None:
    file = directory / "fdmoe-gpu.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id": 77, "version": 12}))
    run("push")
    assert run("diff").exit_code == 0


def test_a_list_says_what_is_missing_the_same_and_different(run: Run, grafana: FakeGrafana, directory: Path) -> None:
    run("push", "--folder-title", "Experts")
    grafana.somebody_saves("fdmoe-gpu", refresh="5s")
    (directory / "new.json").write_text('{"uid": "fdmoe-new", "title": "fdmoe new"}')
    rows = [re.split(r"\s{2,}", line.strip()) for line in run("list").stdout.splitlines()]
    assert rows == [
        ["folder", "uid", "title", "version", "state", "url"],
        ["Experts", "fdmoe-gpu", "fdmoe GPU", "2", "differs", f"{grafana.url}/d/fdmoe-gpu/fdmoe-gpu"],
        ["-", "fdmoe-new", "fdmoe new", "-", "missing", f"{grafana.url}/d/fdmoe-new"],
        ["Experts", "fdmoe-service", "fdmoe service", "1", "same", f"{grafana.url}/d/fdmoe-service/fdmoe-service"],
    ]
    assert json.loads(run("list", "--json").stdout)[1:] == [
        {
            "folder": None, "uid": "fdmoe-new", "title": "fdmoe new", "version": None, "state": "missing",
            "url": f"{grafana.url}/d/fdmoe-new",
        },
        {
            "folder": "Experts", "uid": "fdmoe-service", "title": "fdmoe service", "version": 1, "state": "same",
            "url": f"{grafana.url}/d/fdmoe-service/fdmoe-service",
        },
    ]  # fmt: skip


def test_without_a_grafana_the_list_is_of_what_would_be_pushed(directory: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--json", "--directory", str(directory)])
    assert json.loads(result.stdout) == [
        {"uid": "fdmoe-gpu", "title": "fdmoe GPU"},
        {"uid": "fdmoe-service", "title": "fdmoe service"},
    ]
