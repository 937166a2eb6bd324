"""The annotator's own log lines: nobody may read them any more, and annotations are written all the same."""

from __future__ import annotations

import contextlib
from typing import Literal

import structlog


def say(level: Literal["info", "warning", "error"], event: str, **details: str | int) -> None:
    # a pipe without a reader, a stream that was closed
    with contextlib.suppress(OSError, ValueError):
        getattr(structlog.get_logger("fdmoe.annotator"), level)(event, **details)
