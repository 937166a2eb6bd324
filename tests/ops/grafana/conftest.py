"""A Grafana, a token for it, and the command line with both."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_grafana import TOKEN, FakeGrafana, running_grafana
from typer.testing import CliRunner, Result

from fdmoe_ops.cli.dashboards import app
from fdmoe_ops.grafana import patience

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith("FDMOE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with running_grafana() as grafana:
        yield grafana


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another try comes at once."""
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    return file


def model(uid: str, title: str, **more: object) -> dict[str, Any]:
    source = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    logs = {"name": "logs", "type": "datasource", "query": "loki"}
    return {
        "uid": uid, "title": title, "schemaVersion": 41, "panels": [{"id": 1, "title": "Path"}],
        "templating": {"list": [source, logs]}, **more,
    }  # fmt: skip


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Two dashboards."""
    directory = tmp_path / "dashboards"
    directory.mkdir()
    for uid, title in (("fdmoe-gpu", "fdmoe GPU"), ("fdmoe-service", "fdmoe service")):
        (directory / f"{uid}.json").write_text(json.dumps(model(uid, title)))
    return directory


@pytest.fixture
def run(grafana: FakeGrafana, token_file: Path, directory: Path) -> Run:
    """`fdmoe dashboards ...` with the fixtures' Grafana, token and dashboards; tries for a moment only."""

    def run(command: str, *arguments: str, url: str = grafana.url) -> Result:
        flags = ("--url", url, "--token-file", str(token_file), "--directory", str(directory))
        limits = ("--timeout-s", "10", "--deadline-s", "0.1")
        return CliRunner().invoke(app, [command, *flags, *limits, *arguments])

    return run
