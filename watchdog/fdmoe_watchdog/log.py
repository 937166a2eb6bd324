"""How the processes of a tree write log lines: structlog, to standard error; as JSON each line is one object.

Nobody may read them any more, a terminal may be held, or the disk that they go to may be full: what a process is for
goes on all the same. A thread of its own writes them; what does not fit its queue is dropped, and counted.

Whatever Python says goes the same way: the standard library's loggers, warnings, and exceptions that nobody caught, in
any thread. The events and their fields: dashboards/events.md.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import sys
import threading
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from fdmoe_watchdog.background import Background

_STDERR = 2

Format = Literal["console", "json"]
Level = Literal["debug", "info", "warning", "error"]


def configure(form: Format, level: Level, process: str) -> None:
    """Set logging up for this process, once; `process` is its name in each line. Standard output stays free."""
    global _lines
    _lines = lines = _Lines()
    atexit.register(flush)
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
        logger_factory=lambda *_: lines,
    )
    handler = _Handler(lines)
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


def flush(timeout_s: float = 1.0) -> None:
    """Let what has been logged come out, unless nobody takes it. For who ends without the interpreter's own end."""
    if _lines is not None:
        _lines.flush(timeout_s)


class _Lines:
    """Lines on standard error, for structlog."""

    def __init__(self) -> None:
        self._writer = Background("log")
        self._dropped_told = 0
        self._thread = 0

    def msg(self, line: str) -> None:
        if threading.get_ident() == self._thread:
            self._write(line)
        else:
            self._writer.submit(lambda: self._write(line))

    log = debug = info = warning = error = critical = exception = fatal = msg

    def flush(self, timeout_s: float) -> None:
        self._writer.submit(lambda: None).wait(timeout_s)

    def _write(self, line: str) -> None:
        self._thread = threading.get_ident()
        rest = f"{line}\n".encode(errors="backslashreplace")
        # not through sys.stderr: a thread that waits within it would hold up the interpreter's end
        with contextlib.suppress(OSError):
            while rest:
                rest = rest[os.write(_STDERR, rest) :]
        dropped = self._writer.dropped
        if dropped > self._dropped_told:
            self._dropped_told = dropped
            structlog.get_logger("fdmoe").warning("log_lines_dropped", lines=dropped)


_lines: _Lines | None = None


class _Handler(logging.Handler):
    """What comes by the standard library's loggers."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.msg(self.format(record))
        except Exception:  # noqa: BLE001 - whatever a record's own arguments raise; who logs must not hear of it
            structlog.get_logger("fdmoe").warning("log_line_broken", logger=record.name, text=repr(record.msg))


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
