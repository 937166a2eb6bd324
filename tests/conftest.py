"""Settings that must hold before any test module is imported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    # without a GPU the kernels run in Triton's interpreter, which must be known before they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on tmpfs: CUDA pins files there, and not those of a disk."""
    with tempfile.TemporaryDirectory(prefix="fdmoe-test-", dir="/dev/shm") as name:
        yield Path(name)
