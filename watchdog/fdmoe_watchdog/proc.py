"""A file of /proc, where it can be had."""

from __future__ import annotations

import contextlib
from pathlib import Path

PROC = Path("/proc")


def text_of(path: Path) -> str:
    """The file's text without the space around it; "" where there is none, or it may not be read."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""
