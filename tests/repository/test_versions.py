"""One version for the three distributions and the changelog; one pin for everything that is installed."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECTS: dict[str, dict[str, Any]] = {
    folder: tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
    for folder in ("fdmoe_ops", "kernels", "watchdog")
}
VERSION = PROJECTS["fdmoe_ops"]["version"]
OURS = {project["name"] for project in PROJECTS.values()}


def _requirements(file: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def _dependencies() -> list[Requirement]:
    lists = [project["dependencies"] for project in PROJECTS.values()]
    lists += [texts for project in PROJECTS.values() for texts in project.get("optional-dependencies", {}).values()]
    return [Requirement(text) for texts in lists for text in texts]


def test_one_version() -> None:
    assert {project["version"] for project in PROJECTS.values()} == {VERSION}


def test_the_distributions_ask_for_each_other_in_this_version() -> None:
    among = [requirement for requirement in _dependencies() if requirement.name in OURS]
    assert {str(requirement.specifier) for requirement in among} == {f"=={VERSION}"}
    assert len(among) == 3


def test_the_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## \[?(\d+\.\d+\.\d+)\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:1] == [VERSION]


@pytest.mark.parametrize("name", sorted(OURS))
def test_what_is_installed_is_this_version(name: str) -> None:
    try:
        installed = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} runs from the source tree and is not installed")
    assert installed == VERSION


def test_everything_is_pinned_within_the_range_that_is_declared() -> None:
    pins = {canonicalize_name(pin.name): pin.specifier for pin in _requirements("constraints.txt")}
    asked = [*_dependencies(), *_requirements("requirements-dev.txt")]
    problems = []
    for requirement in (requirement for requirement in asked if requirement.name not in OURS):
        pin = pins.get(canonicalize_name(requirement.name))
        version = str(pin).removeprefix("==") if pin else "nothing"
        if pin is None or not requirement.specifier.contains(version):
            problems.append(f"{requirement} is pinned to {version}")
    assert problems == []


def test_a_pin_is_one_version() -> None:
    assert [
        str(pin) for pin in _requirements("constraints.txt") if not re.fullmatch(r"==[^*,]+", str(pin.specifier))
    ] == []
