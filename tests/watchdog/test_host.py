"""What the host was like, out of a /proc that may lack anything."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from fdmoe_watchdog.host import host_facts, versions

MEMINFO = "MemTotal:       2048 kB\nMemAvailable:   1024 kB\nHugePages_Total:       0\nSwapFree: x kB\nnoise\n"


def test_what_is_there_is_told(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "loadavg").write_text("0.50 0.40 0.30 2/345 6789\n")
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "pressure/cpu").write_text("some avg10=1.00 avg60=0.00 avg300=0.00 total=7\n")
    assert host_facts(tmp_path) == {
        "load": "0.50 0.40 0.30 2/345 6789",
        "pressure": {"cpu": "some avg10=1.00 avg60=0.00 avg300=0.00 total=7"},
        "memory_bytes": {"MemTotal": 2048 * 1024, "MemAvailable": 1024 * 1024},
    }


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    assert host_facts(tmp_path) == {}


def test_this_host() -> None:
    assert host_facts()["memory_bytes"]["MemTotal"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert versions()["python"] == platform.python_version()
    assert versions()["kernel"] == os.uname().release
