"""Where the dashboards are, and the promtool that judges them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DASHBOARDS = Path(__file__).parents[2] / "dashboards"


@pytest.fixture
def dashboards() -> Path:
    return DASHBOARDS


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool with the given arguments; its exit status and output are the test's to judge."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("promtool is not installed (Debian and Ubuntu: apt-get install prometheus)")

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [binary, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    return run
