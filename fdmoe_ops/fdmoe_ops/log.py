"""How the processes of a tree write log lines: structlog, to standard error."""

from __future__ import annotations

import sys

import structlog

from fdmoe_ops.settings import LogFormat, LogSettings


def configure(settings: LogSettings) -> None:
    """Set structlog up for this process. Standard output stays free for what the command prints."""
    renderer: structlog.types.Processor
    if settings.format is LogFormat.JSON:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level.value),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
