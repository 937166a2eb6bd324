"""The promtool that judges rules and queries."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def promtool() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs promtool with the given arguments; its exit status and output are the test's to judge."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("promtool is not installed (Debian and Ubuntu: apt-get install prometheus)")

    def run(*arguments: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        command = [binary, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, input=stdin, timeout=240, check=False)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())

    return run
