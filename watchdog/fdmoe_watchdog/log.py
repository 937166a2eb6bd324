"""How the processes of a tree write log lines: structlog, to standard error; as JSON each line is one object.

Nobody may read them any more, a terminal may be held, or the disk that they go to may be full: what a process is for
goes on all the same. A thread of its own writes them, as many at a time as there are; when too many wait the oldest are
dropped, and how many is told.

Whatever Python says goes the same way: the standard library's loggers, warnings, and exceptions that nobody caught, in
any thread. The events and their fields: dashboards/events.md.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import logging.handlers
import math
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_STDERR = 2
_MOST_WAITING = 1000
_URGENT_S = 0.02
_POLL_S = 0.0005

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

    # whatever level is wanted; gives the line back
    logger = structlog.wrap_logger(
        _Back(), processors=[*first, *last], wrapper_class=structlog.make_filtering_bound_logger(0)
    )

    def notice(missing: int) -> str:
        return str(logger.warning("log_lines_dropped", lines=missing))

    global _lines
    _lines = lines = _Lines(notice)
    atexit.register(flush)
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


def flush(timeout_s: float = 0.5) -> None:
    """Let what has been logged come out, unless nobody takes it. For who ends without the interpreter's own end."""
    if _lines is not None:
        _lines.flush(timeout_s)


class _Back:
    def warning(self, line: str) -> str:
        return line


class _Lines:
    """Lines on standard error, for structlog and for the standard library's handler.

    A finalizer or a signal handler may log in the midst of anything here, in the same thread: the lock and the queue
    can be entered again. `notice` makes the line that tells how many are missing.
    """

    def __init__(self, notice: Callable[[int], str]) -> None:
        self._notice = notice
        self._waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._lock = threading.RLock()
        self._given = self._dropped = 0
        # the writing thread's own: lines that it is done with, those of them that the system did not take, those that
        # were told to be missing, and whether the last one is cut off
        self._taken = self._refused = self._told = 0
        self._torn = False
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def msg(self, line: str) -> None:
        with self._lock:
            if self._waiting.qsize() >= _MOST_WAITING:
                # the newest are kept: they say why somebody looks
                with contextlib.suppress(queue.Empty):
                    self._waiting.get_nowait()
                    self._dropped += 1
            self._given += 1
            self._waiting.put(line)

    def urgent(self, line: str) -> None:
        """Who logs an error may be ended for it: the line comes first, unless others already wait."""
        alone = self._waiting.empty()
        self.msg(line)
        if alone:
            self.flush(_URGENT_S)

    log = debug = info = warning = msg
    error = critical = exception = fatal = urgent

    def flush(self, timeout_s: float) -> None:
        given, deadline = self._given, time.monotonic() + timeout_s
        while self._taken + self._dropped < given and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _run(self) -> None:
        while True:
            lines = [self._waiting.get()]
            with contextlib.suppress(queue.Empty):
                while len(lines) < _MOST_WAITING:
                    lines.append(self._waiting.get_nowait())
            missing = self._dropped + self._refused
            notices = [self._notice(missing)] if missing > self._told else []
            if self._write([*notices, *lines]):
                self._told = missing
            else:
                self._refused += len(lines)
            self._taken += len(lines)

    def _write(self, lines: list[str]) -> bool:
        """Whether the system took them all. Waits for as long as it takes none."""
        text = "".join(f"{line}\n" for line in lines)
        rest = f"\n{text}".encode(errors="backslashreplace")[0 if self._torn else 1 :]
        # not through sys.stderr, whose lock would be held meanwhile
        while rest:
            try:
                taken = os.write(_STDERR, rest)
            except BlockingIOError:
                select.select((), (_STDERR,), ())
                continue
            except (OSError, ValueError):  # nobody reads any more, there is no room, or it has been closed
                return False
            self._torn = not rest[:taken].endswith(b"\n")
            rest = rest[taken:]
        return True


_lines: _Lines | None = None


class _Handler(logging.handlers.QueueHandler):
    """What comes by the standard library's loggers; its own class makes the line."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__(queue.SimpleQueue())  # which nothing goes into
        self._lines = lines

    def enqueue(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            self._lines.urgent(record.msg)
        else:
            self._lines.msg(record.msg)

    def handleError(self, record: logging.LogRecord) -> None:
        """Its text and its arguments make no line; who logs must not hear of it."""
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
