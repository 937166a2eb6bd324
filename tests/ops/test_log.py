"""Log lines as JSON: one object a line, whatever a process says, exceptions included."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest

CONFIGURED = """
import logging, sys, threading, warnings
import structlog
from fdmoe_ops import log
from fdmoe_ops.settings import LogFormat, LogLevel, LogSettings
log.configure(LogSettings(format=LogFormat(sys.argv[1]), level=LogLevel("info")), "worker-a-g3")
logger = structlog.get_logger("fdmoe.worker")
"""


def said(script: str, form: str = "json", code: int = 0) -> str:
    """What a process of ours says on standard error."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", CONFIGURED + script, form],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "")
    return done.stderr


def lines(script: str, code: int = 0) -> list[dict[str, Any]]:
    """Its lines, each of which must be an object, in JSON's own words."""

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found = [json.loads(line, parse_constant=no_constant) for line in said(script, code=code).splitlines()]
    assert all(isinstance(line.pop("timestamp"), str) and line.pop("process") == "worker-a-g3" for line in found)
    return found


def test_an_event_and_its_fields() -> None:
    assert lines("logger.info('warm', layers=2, requests=('a', 'b'), error=float('inf')); logger.debug('unseen')") == [
        {"event": "warm", "level": "info", "layers": 2, "requests": ["a", "b"], "error": "inf"}
    ]


def test_an_exception_is_one_line() -> None:
    (line,) = lines("try:\n    1 / 0\nexcept ZeroDivisionError:\n    logger.exception('worker_broken')")
    trace = line.pop("exception")
    assert line == {"event": "worker_broken", "level": "error"}
    assert trace.startswith("Traceback (most recent call last):\n")
    assert trace.endswith("\nZeroDivisionError: division by zero")


def test_an_uncaught_exception_is_one_line() -> None:
    (line,) = lines("1 / 0", code=1)
    assert line.pop("exception").endswith("ZeroDivisionError: division by zero")
    assert line == {"event": "uncaught_exception", "level": "critical"}


def test_an_uncaught_exception_of_a_thread_is_one_line() -> None:
    (line,) = lines("t = threading.Thread(target=lambda: 1 / 0, name='disk'); t.start(); t.join()")
    assert line.pop("exception").endswith("ZeroDivisionError: division by zero")
    assert line == {"event": "uncaught_exception", "level": "critical", "thread": "disk"}


def test_pythons_own_loggers_and_warnings_say_it_the_same_way() -> None:
    first, second = lines("logging.getLogger('x').warning('of %s', 1); warnings.warn('old\\nnews')")
    assert first == {"event": "of 1", "level": "warning", "logger": "x"}
    assert second["logger"] == "py.warnings"
    assert "UserWarning: old\nnews" in second["event"]
    assert lines("logging.getLogger('x').info('of note'); logging.getLogger('x').debug('not')") == [
        {"event": "of note", "level": "info", "logger": "x"}
    ]


def test_a_loops_lost_exception_is_one_line() -> None:
    (line,) = lines(
        "import asyncio\n"
        "async def main():\n"
        "    asyncio.get_running_loop().call_soon(lambda: 1 / 0)\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())"
    )
    assert line["logger"] == "asyncio"
    assert line["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    "script", ["logger.error('batch_failed', batch=7)", "logging.getLogger('x').error('batch_failed')"]
)
def test_the_console_is_for_people(script: str) -> None:
    text = said(script, "console")
    assert "batch_failed" in text
    assert "{" not in text
    assert "process=worker-a-g3" in text


def test_the_console_shows_where_it_ended() -> None:
    assert "ZeroDivisionError: division by zero" in said("1 / 0", "console", code=1)


def test_a_line_that_cannot_be_made_is_told() -> None:
    assert lines("logging.getLogger('x').warning('%d of 3', 'two')") == [
        {"event": "log_line_broken", "level": "warning", "logger": "x", "text": "'%d of 3'"}
    ]


BARE = """
import gc, logging, os, sys, time, structlog
from fdmoe_watchdog import log
log.configure("json", "info", "p")
logger = structlog.get_logger()
def burst(count):
    for number in range(count):
        logger.info("fence", number=number, filler="x" * 100)
"""


@contextlib.contextmanager
def running(script: str, stderr: int | IO[bytes] = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """A process that logs, whose lines nobody has read yet; it reads its standard input."""
    with subprocess.Popen(
        [sys.executable, "-P", "-c", BARE + script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_a_log_that_nobody_reads_stops_nothing_and_what_is_lost_is_told_where_it_is_missing() -> None:
    """A pipe whose reader sleeps, a terminal that is held: a write there waits for good."""
    script = (
        "burst(5000); logging.getLogger('x').warning('told'); print('on', flush=True); sys.stdin.readline()\n"
        "log.flush(30); logger.info('last')"
    )
    with running(script) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "on\n", "nobody has read a line yet"
        process.stdin.write("\n")
        process.stdin.flush()
        found = [json.loads(line) for line in process.stderr]
        assert process.wait(20) == 0
    expected = missing = 0
    for line in found[:-2]:
        if line["event"] == "log_lines_dropped":
            missing = line["lines"]
        else:
            assert line["number"] == expected + missing
            expected += 1
    assert expected + missing == 5000
    assert missing > 3000, "the newest thousand are kept, and what the pipe took before"
    assert [line["event"] for line in found[-2:]] == ["told", "last"]


def test_a_reader_that_is_there_gets_every_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+b") as file:
        with running("burst(3000); logger.info('last')", file) as process:
            assert process.wait(30) == 0
        file.seek(0)
        found = [json.loads(line) for line in file]
    assert [line.get("number") for line in found] == [*range(3000), None]


def test_a_reader_that_is_late_at_a_descriptor_that_does_not_wait_gets_every_line() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with running("burst(900); print('on', flush=True); log.flush(30)", theirs) as process:
        os.close(theirs)
        assert process.stdout
        assert process.stdout.readline() == "on\n"
        with os.fdopen(ours) as lines:
            assert [json.loads(line)["number"] for line in lines] == list(range(900))
        assert process.wait(20) == 0


def test_an_error_is_written_before_the_process_is_ended_for_it() -> None:
    for _ in range(5):
        with running("logger.error('worker_broken'); os.kill(os.getpid(), 9)") as process:
            assert process.stderr
            assert "worker_broken" in process.stderr.read()


def test_what_logs_in_the_midst_of_a_line_holds_nobody_up() -> None:
    """Signal handlers and finalizers run between any two steps of the thread that logs."""
    script = (
        "import signal\n"
        "signal.signal(signal.SIGALRM, lambda *_: logger.info('late'))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)\n"
        "end = time.monotonic() + 2\n"
        "while time.monotonic() < end: logger.info('fence', filler='x' * 100)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
        "print('on', flush=True)"
    )
    with running(script) as process:
        assert process.stdout
        assert process.stdout.readline() == "on\n", "nobody has read a line yet"
        assert process.wait(20) == 0, "nor at its end"


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_log_that_takes_no_line_stops_nothing(form: str) -> None:
    """A full disk, for one."""
    program = (
        "import logging, warnings, structlog; from fdmoe_watchdog import log; "
        f"log.configure({form!r}, 'info', 'p'); structlog.get_logger().warning('fence', worker='a'); "
        "logging.getLogger('x').warning('told'); warnings.warn('told'); print('on')"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
            stdout=subprocess.PIPE, stderr=full, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.stdout == "on\n"
