"""How the processes of a tree write log lines: structlog, to standard error; as JSON each line is one object.

Whatever Python says goes the same way: the standard library's loggers, warnings, and exceptions that nobody caught, in
any thread. The events and their fields: dashboards/events.md.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]


def configure(form: Format, level: Level, process: str) -> None:
    """Set logging up for this process, once; `process` is its name in each line. Standard output stays free."""
    first: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _named(process),
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, _finite, structlog.processors.JSONRenderer()]
        if form == "json"
        else [
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    )
    structlog.configure(
        processors=[*first, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread


def _named(process: str) -> Processor:
    def add(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"] = process
        return event

    return add


def _finite(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """JSON has no word for NaN and infinities."""
    for key, value in event.items():
        if isinstance(value, float) and not math.isfinite(value):
            event[key] = str(value)
    return event


def _uncaught(kind: type[BaseException], error: BaseException, _trace: object) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("fdmoe").critical("uncaught_exception", exc_info=error)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread is not None else ""
        structlog.get_logger("fdmoe").critical("uncaught_exception", thread=name, exc_info=args.exc_value)
