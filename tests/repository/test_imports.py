"""Imports go down only, and the watchdog does without torch: by the written contracts, and by looking."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

_IMPORT_ALL = """
import importlib, json, pkgutil, sys
import fdmoe_watchdog
names = [module.name for module in pkgutil.walk_packages(fdmoe_watchdog.__path__, "fdmoe_watchdog.")]
for name in names:
    importlib.import_module(name)
print(json.dumps({"imported": names, "held": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def test_the_contracts_between_the_distributions_hold() -> None:
    script = "import sys; from importlinter.cli import lint_imports_command as lint; sys.exit(lint())"
    command = (sys.executable, "-P", "-c", script, "--no-cache")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_module_of_the_watchdog_comes_without_torch() -> None:
    command = (sys.executable, "-P", "-c", _IMPORT_ALL)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seen = json.loads(done.stdout)
    assert "fdmoe_watchdog.page" in seen["imported"]
    assert set(seen["held"]) & {"torch", "triton", "numpy", "fdmoe_ops", "fdmoe_kernels"} == set()
