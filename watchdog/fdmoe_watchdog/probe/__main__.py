"""`python -m fdmoe_watchdog.probe --run-dir DIR --device 0`: the NVML probe's process, a child of the watchdog."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import get_args

import structlog

from fdmoe_watchdog import log
from fdmoe_watchdog.channel import Channel
from fdmoe_watchdog.child import die_with_parent
from fdmoe_watchdog.messages import PROTOCOL, Hello
from fdmoe_watchdog.probe.backend import Backend
from fdmoe_watchdog.probe.blocking import BlockingBackend
from fdmoe_watchdog.probe.loop import run
from fdmoe_watchdog.probe.recorded import RecordedBackend

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m fdmoe_watchdog.probe", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="where the watchdog listens")
    parser.add_argument("--device", nargs="+", required=True, help="NVML indices or UUIDs, of GPUs or MIG instances")
    parser.add_argument("--interval-s", type=float, default=1.0, help="pause between two readings")
    parser.add_argument("--retry-s", type=float, default=30.0, help="pause before a device is opened again")
    parser.add_argument("--recorded", type=Path, help="replay this file instead of asking NVML")
    parser.add_argument("--chaos", action="store_true", help="let the watchdog have a reading block")
    parser.add_argument("--log-format", choices=get_args(log.Format), default="console")
    parser.add_argument("--log-level", choices=get_args(log.Level), default="info")
    options = parser.parse_args(arguments)
    log.configure(options.log_format, options.log_level, "probe")
    try:
        channel = Channel.connect(options.run_dir / "watchdog.sock", Hello(PROTOCOL, "probe", "probe", 0, os.getpid()))
    except OSError as error:
        structlog.get_logger("fdmoe.probe").error("no_watchdog", run_dir=str(options.run_dir), reason=str(error))
        return EXIT_FAILED
    backend = _backend(options.recorded)
    return run(
        BlockingBackend(backend, channel) if options.chaos else backend,
        options.device,
        channel.send,
        interval_s=options.interval_s,
        retry_s=options.retry_s,
    )


def _backend(recorded: Path | None) -> Backend:
    if recorded is not None:
        return RecordedBackend(recorded)
    # here, so that a recording is replayed where nvidia-ml-py is not installed
    from fdmoe_watchdog.probe.nvml import NvmlBackend

    return NvmlBackend()


if __name__ == "__main__":
    sys.exit(main())
