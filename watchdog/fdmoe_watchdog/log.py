"""How the processes of a tree write log lines: structlog, to standard error; as JSON each line is one object.

Whatever Python says goes the same way: the standard library's loggers, warnings, and exceptions that nobody caught, in
any thread. The events and their fields: dashboards/events.md.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
from typing import Literal, TextIO

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
        logger_factory=lambda *_: _Lines(),
    )
    handler = _Handler(sys.stderr)
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


class _Lines:
    """Lines on standard error, for structlog. Nobody may read them any more, or the disk that they go to may be full:
    what a process is for goes on all the same."""

    def msg(self, line: str) -> None:
        # OSError: no reader, or no room; ValueError: the stream has been closed
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)

    log = debug = info = warning = error = critical = exception = fatal = msg


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """As above: the standard library would write to the stream that does not take it."""


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
