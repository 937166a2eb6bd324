"""A process with a wall clock of its own: what it reads, and what stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from fdmoe_ops.chaos.wall_clock import WallClock, can_be_set

pytestmark = pytest.mark.skipif(not can_be_set(), reason="there is no C compiler")
# one line for each line of input
ASKED = """
import datetime, json, sys, time
for _ in sys.stdin:
    clocks = (time.time(), time.time_ns() / 1e9, datetime.datetime.now(datetime.UTC).timestamp(),
              time.clock_gettime(time.CLOCK_REALTIME), time.mktime(time.localtime()))
    print(json.dumps([*clocks, time.monotonic()]), flush=True)
"""


def test_all_of_a_process_that_tells_the_time_jumps_and_the_monotonic_clock_does_not() -> None:
    with WallClock() as clock:
        process = subprocess.Popen(
            (sys.executable, "-c", ASKED), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **clock.environment},
        )  # fmt: skip
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            for offset_s in (0, 3600, -3600, 86400 * 365, 0):
                clock.set(offset_s)
                before, monotonic = time.time() + offset_s, time.monotonic()
                process.stdin.write("\n")
                process.stdin.flush()
                *found, steady = json.loads(process.stdout.readline())
                after = time.time() + offset_s
                # local time has whole seconds
                assert all(before - 1 <= value <= after for value in found), (offset_s, before, found, after)
                assert monotonic <= steady <= time.monotonic()
            assert clock.is_of(process.pid)
            assert not clock.is_of(os.getpid())
            process.stdin.close()
    assert process.returncode == 0
