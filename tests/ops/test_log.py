"""Log lines as JSON: one object a line, whatever a process says, exceptions included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def test_a_log_that_nobody_reads_stops_nothing_and_what_is_lost_is_counted() -> None:
    """A pipe without a reader that lives, a terminal that is held: a write there waits for good."""
    program = (
        "import logging, sys, structlog; from fdmoe_watchdog import log; log.configure('json', 'info', 'p')\n"
        "for number in range(5000): structlog.get_logger().info('fence', number=number, filler='x' * 100)\n"
        "logging.getLogger('x').warning('told'); print('on', flush=True); sys.stdin.readline()\n"
        "log.flush(30); structlog.get_logger().info('last')"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "on\n", "nobody has read a line yet"
        process.stdin.write("\n")
        process.stdin.flush()
        found = [json.loads(line) for line in process.stderr]
    assert process.returncode == 0
    numbers = [line["number"] for line in found if line["event"] == "fence"]
    assert numbers == sorted(set(numbers))
    assert numbers[:1000] == list(range(1000))
    assert found[-1]["event"] == "last"
    lost = [line["lines"] for line in found if line["event"] == "log_lines_dropped"]
    assert len(numbers) + max(lost) == 5001, "the standard library's line, too"


def test_who_ends_before_anybody_reads_waits_a_second_at_most() -> None:
    program = (
        "import structlog, sys; from fdmoe_watchdog import log; log.configure('json', 'info', 'p')\n"
        "for number in range(900): structlog.get_logger().info('fence', filler='x' * 100)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path[1:])},
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.wait(60) == 0


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
