"""The dashboards come with what is installed: a wheel is built, unpacked, and asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from fdmoe_ops.grafana.dashboards import own_directory

ROOT = Path(__file__).parents[3]
UIDS = sorted(json.loads(file.read_text())["uid"] for file in (ROOT / "dashboards").glob("*.json"))


def build(project: Path, target: str, into: Path) -> Path:
    command = (sys.executable, "-P", "-m", "hatchling", "build", "-t", target, "-d", str(into))
    subprocess.run(command, cwd=project, check=True, capture_output=True, timeout=60)
    (built,) = into.iterdir()
    return built


def listed(package: Path) -> list[str]:
    # the wheel alone would need its two siblings installed
    paths = (package, ROOT / "watchdog", ROOT / "kernels")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = (sys.executable, "-P", "-m", "fdmoe_ops.cli", "dashboards", "list", "--json")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, cwd=package, env=environment
    )  # fmt: skip
    return [row["uid"] for row in json.loads(done.stdout)]


def test_a_source_tree_has_its_repositorys_dashboards() -> None:
    assert own_directory() == ROOT / "dashboards"
    assert "fdmoe-service" in UIDS


def test_a_wheel_brings_the_dashboards(tmp_path: Path) -> None:
    wheel = build(ROOT / "fdmoe_ops", "wheel", tmp_path / "built")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert sorted(name for name in names if name.startswith("fdmoe_ops/dashboards/")) == sorted(
        f"fdmoe_ops/dashboards/{file.name}" for file in (ROOT / "dashboards").glob("*.json")
    )
    assert listed(tmp_path / "installed") == UIDS


def test_so_does_a_wheel_that_is_built_from_the_source_archive(tmp_path: Path) -> None:
    archive = build(ROOT / "fdmoe_ops", "sdist", tmp_path / "archive")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    wheel = build(source, "wheel", tmp_path / "built")
    with zipfile.ZipFile(wheel) as built:
        inside = [json.loads(built.read(name))["uid"] for name in built.namelist() if "fdmoe_ops/dashboards/" in name]
    assert sorted(inside) == UIDS
