"""The real probe on a real GPU: what any data centre GPU must say."""

from __future__ import annotations

from pathlib import Path

import pytest
from probed_watchdog import Watchdog

from fdmoe_watchdog.probe_keeper import ProbePlan

pytestmark = pytest.mark.gpu


def test_a_gpu_is_read_and_its_figures_are_possible(tmp_path: Path) -> None:
    watchdog = Watchdog(ProbePlan({"cuda:0": "0"}, tmp_path, {}))
    try:
        watchdog.until(lambda: sum(bool(message.gpus) for message in watchdog.heard) >= 3)
        view = watchdog.view
        assert (view.collecting, view.source, view.xids_watched) == (True, "nvml", True)
        (gpu,) = view.gpus
        assert gpu.uuid.startswith("GPU-")
        assert gpu.memory_total_bytes > gpu.memory_free_bytes > 0
        assert gpu.memory_used_bytes + gpu.memory_free_bytes <= gpu.memory_total_bytes
        assert 10 < gpu.power_watts < 2000
        assert 10 < gpu.temperature_celsius < 110
        assert 0 <= gpu.utilization <= 1
        assert watchdog.keeper.health("cuda:0", 0).state == "ok"
    finally:
        watchdog.close()
