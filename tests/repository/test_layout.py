"""`kernels` and `watchdog` are packages on PyPI too, and transformers probes for the first: shadow neither."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ("fdmoe_ops", "kernels", "watchdog")


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_a_distributions_folder_is_no_package(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_repositorys_root_is_not_on_the_path() -> None:
    # "" is the current directory
    assert ROOT not in {Path(entry).resolve() for entry in sys.path}


@pytest.mark.parametrize("name", ["kernels", "watchdog"])
def test_names_on_pypi_are_not_found_here(name: str) -> None:
    spec = importlib.util.find_spec(name)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    assert [place for place in places if place and ROOT in Path(place).resolve().parents] == []


@pytest.mark.parametrize(
    ("name", "folder"), [("fdmoe_ops", "fdmoe_ops"), ("fdmoe_kernels", "kernels"), ("fdmoe_watchdog", "watchdog")]
)
def test_ours_are_tested_and_not_another_installation(name: str, folder: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin == str(ROOT / folder / name / "__init__.py")


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_types_are_published(folder: str) -> None:
    assert [file.parent.parent.name for file in (ROOT / folder).glob("*/py.typed")] == [folder]
