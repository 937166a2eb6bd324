"""`python -m fdmoe_ops.weights --settings FILE --device D --name NAME --generation N`: a device's holder of weights."""

from __future__ import annotations

import argparse
import os
import select
import sys
import time
from pathlib import Path

import structlog

from fdmoe_ops import log
from fdmoe_ops import settings as tree
from fdmoe_ops.failure import fail
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.child import die_with_parent


def main(arguments: list[str] | None = None) -> int:
    """SIGTERM ends it at any time, as is its default: there is nothing to finish."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m fdmoe_ops.weights", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--generation", type=int, required=True)
    options = parser.parse_args(arguments)
    settings = tree.read(options.settings)
    log.configure(settings.log, f"{options.name}-g{options.generation}")
    assert settings.run_dir is not None, "a resolved tree has a run_dir"
    hello = messages.Hello(messages.PROTOCOL, "weights", options.name, options.generation, os.getpid())
    control = Channel.connect(settings.run_dir / "watchdog.sock", hello)
    try:
        _lend(settings, control, options)
    except ChannelClosed as error:
        # the watchdog is gone or wants nothing more of this process
        structlog.get_logger("fdmoe.weights").info("holder_ends", reason=str(error))
    except Exception as error:  # noqa: BLE001
        # the outermost loop: whatever it is, the watchdog is told in words
        structlog.get_logger("fdmoe.weights").exception("holder_broken")
        fail(control, f"{type(error).__name__}: {error}", "unknown")
    return 0


def _lend(settings: tree.Settings, control: Channel, options: argparse.Namespace) -> None:
    """Hold the weights until the watchdog's channel closes."""
    # only now: a child's first milliseconds belong to main, and torch takes seconds to import
    try:
        import torch

        from fdmoe_ops.checkpoint import CheckpointError
        from fdmoe_ops.weights.holder import hold
    except (ImportError, OSError) as error:
        # a library is missing: no other start would find it
        fail(control, f"what serves a model cannot be imported: {error}", "settings")

    if torch.device(options.device).type == "cpu":
        # workers compute on the same cores: with two threads on two busy ones a gigabyte took 3 to 9 s, with one 1 s
        torch.set_num_threads(1)
    started = time.monotonic()
    try:
        held = hold(settings, options.device, f"{options.name}-g{options.generation}")
    except (CheckpointError, WeightsError) as error:
        fail(control, str(error), "settings")
    seconds = round(time.monotonic() - started, 3)
    structlog.get_logger("fdmoe.weights").info("weights_held", size_bytes=held.size_bytes, seconds=seconds)
    control.send(messages.WeightsReady(options.generation, str(held.manifest), held.size_bytes))
    while True:
        select.select([control], [], [])
        message = control.receive()
        if message is not None:
            raise ChannelClosed(f"a {type(message).__name__} is not for a holder of weights")


if __name__ == "__main__":
    sys.exit(main())
