"""The Makefile's promises that can be seen without installing anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    # these tests may themselves be run by make, with variables of their own
    ours = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "VENV", "PYTHON", "ARGS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    command = ("make", "--no-print-directory", "-C", str(ROOT), *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


def test_help_is_the_first_target_and_names_the_others() -> None:
    lines = _make().stdout.splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["help", "serve", "test", "test-gpu", "lint", "format"]


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = _make("serve", f"VENV={tmp_path}/venv", f"PYTHON={old}")
    assert done.returncode == 2
    assert f"error: {old} is not Python 3.11 or newer; name one with PYTHON=" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("serve", "ARGS=--enable-chaos"), "python3 -P -m fdmoe_ops.cli serve --enable-chaos"),
        (("test-gpu",), "python3 -P -m pytest -m gpu tests/kernels tests/ops tests/tree "),
        (
            ("dashboards", "RUNBOOKS=https://x/y"),
            "python3 dashboards/generate.py --runbooks https://x/y\n"
            "python3 -P dashboards/metrics_page.py > dashboards/metrics.md",
        ),
    ],
)
def test_without_a_virtual_environment_the_given_python_is_used(arguments: tuple[str, ...], command: str) -> None:
    assert _make("--dry-run", "VENV=", "PYTHON=python3", *arguments).stdout == f"{command}\n"


def test_continuous_integration_is_a_valid_script() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(("bash", "-n", str(script)), check=False).returncode == 0
