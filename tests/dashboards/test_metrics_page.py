"""The page of all metrics is what the registries hold, and knows what every label can hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_its_program_writes() -> None:
    program = ROOT / "dashboards" / "metrics_page.py"
    result = subprocess.run([sys.executable, "-P", program], capture_output=True, text=True, check=True)
    page = (ROOT / "dashboards" / "metrics.md").read_text()
    assert page == result.stdout, "python dashboards/metrics_page.py > dashboards/metrics.md"
    assert "`fdmoe_path_switches_total` | counter | `from`, `to`, `reason` |" in page
    assert "`fdmoe_worker_state` | gauge | `device`, `worker`, `state` | D × 2 × 6 |" in page
