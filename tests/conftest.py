"""Settings that must hold before any test module is imported."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

if not Path("/dev/nvidiactl").exists():
    # without a GPU the kernels run in Triton's interpreter, which must be known before they are imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A directory on tmpfs: CUDA pins files there, and not those of a disk."""
    with tempfile.TemporaryDirectory(prefix="fdmoe-test-", dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def _logging_stays() -> Iterator[None]:
    """A command that runs in the test's own process sets logging up for the rest of it, on a stream that ends first."""
    root = logging.getLogger()
    before, level, hooks = list(root.handlers), root.level, (sys.excepthook, threading.excepthook)
    yield
    if not structlog.is_configured():
        return
    structlog.reset_defaults()
    logging.captureWarnings(False)
    sys.excepthook, threading.excepthook = hooks
    root.setLevel(level)
    for handler in set(root.handlers) - set(before):
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)
