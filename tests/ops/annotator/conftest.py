from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_grafana import TOKEN, FakeGrafana, running_grafana

from fdmoe_ops.settings import GrafanaSettings


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def grafana() -> Iterator[FakeGrafana]:
    with running_grafana() as grafana:
        yield grafana


@pytest.fixture
def settings(grafana: FakeGrafana, tmp_path: Path) -> GrafanaSettings:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return GrafanaSettings(url=grafana.url, token_file=token)
