"""Watchdogs with a probe, ended when the test is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from probed_watchdog import RECOVERY, FakePlan, Watchdog

from fdmoe_watchdog.probe_keeper import ProbePlan
from fdmoe_watchdog.settings import RecoverySettings


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watchdog]]:
    """A watchdog over a plan; `script` are FakeNvml's arguments, `recorded` a file to replay."""
    watchdogs: list[Watchdog] = []

    def start(
        *,
        recorded: Path | None = None,
        devices: dict[str, str] | None = None,
        recovery: RecoverySettings = RECOVERY,
        chaos: bool = False,
        **script: Any,
    ) -> Watchdog:
        devices = devices or {"cuda:0": "0"}
        if recorded is not None:
            plan = ProbePlan(devices, tmp_path, {}, recorded)
        else:
            support = str(Path(__file__).parents[2] / "support")
            path = ":".join([support, *filter(None, sys.path)])
            plan = FakePlan(devices, tmp_path, {"PYTHONPATH": path}, script=json.dumps(script), chaos=chaos)
        watchdogs.append(Watchdog(plan, recovery))
        return watchdogs[-1]

    yield start
    for watchdog in watchdogs:
        watchdog.close()
