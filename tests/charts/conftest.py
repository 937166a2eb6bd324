"""The chart as helm renders it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

CHART = Path(__file__).parents[2] / "charts" / "fdmoe-ops"
Objects = dict[str, dict[str, Any]]


@pytest.fixture
def chart() -> Path:
    return CHART


@pytest.fixture
def helm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs helm with the given arguments; its exit status and output are the test's to judge."""
    binary = shutil.which("helm", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert binary, "helm is not installed; it comes with the development dependency helm-binary"

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [binary, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def template(
    helm: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`helm template` of a release called `moe` with the given values over the chart's own."""

    def run(values: dict[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump(values or {}))
        return helm("template", "moe", CHART, "--namespace", "serving", "--values", file)

    return run


@pytest.fixture
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., Objects]:
    """The rendered objects by kind; the chart has at most one of each."""

    def run(values: dict[str, Any] | None = None) -> Objects:
        rendered = template(values)
        assert rendered.returncode == 0, rendered.stderr
        objects = [found for found in yaml.safe_load_all(rendered.stdout) if found]
        by_kind = {found["kind"]: found for found in objects}
        assert len(by_kind) == len(objects)
        return by_kind

    return run
