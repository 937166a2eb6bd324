"""The demo checkpoint, and a watchdog that starts holders of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lending import Parent, settings_for

from fdmoe_ops.demo import write_demo_model


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "demo"
    write_demo_model(directory)
    return directory


@pytest.fixture
def parent(demo: Path, in_memory: Path) -> Iterator[Parent]:
    parent = Parent(settings_for(demo, in_memory))
    yield parent
    parent.stop()
