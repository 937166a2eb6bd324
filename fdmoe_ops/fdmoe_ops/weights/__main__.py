"""`python -m fdmoe_ops.weights --settings FILE --device D --name NAME --generation N`: holds a device's weights.

It reads the checkpoint, puts the served layers into memory that workers map, says so, and waits. It runs no kernel:
whatever happens to a worker, the weights stay, and the next worker need not load them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import traceback
from pathlib import Path

import structlog

from fdmoe_ops import log
from fdmoe_ops import settings as tree
from fdmoe_ops.checkpoint.errors import CheckpointError
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.child import die_with_parent

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m fdmoe_ops.weights", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--generation", type=int, required=True)
    options = parser.parse_args(arguments)
    settings = tree.read(options.settings)
    log.configure(settings.log)
    assert settings.run_dir is not None, "a resolved tree has a run_dir"
    hello = messages.Hello(messages.PROTOCOL, "weights", options.name, options.generation, os.getpid())
    control = Channel.connect(settings.run_dir / "watchdog.sock", hello)
    try:
        return _hold(settings, control, options.device, f"{options.name}-g{options.generation}", options.generation)
    except ChannelClosed as error:
        # the watchdog is gone or wants nothing more of this process
        structlog.get_logger("fdmoe.weights").info("weights_end", reason=str(error))
        return 0


def _hold(settings: tree.Settings, control: Channel, device: str, stem: str, generation: int) -> int:
    # only now: torch takes seconds to import
    from fdmoe_ops.weights.holding import hold
    from fdmoe_ops.weights.manifest import WeightsError

    try:
        path, size_bytes = hold(settings, device, stem)
    except (CheckpointError, WeightsError) as error:
        return _fail(control, str(error), "settings")
    except Exception as error:  # noqa: BLE001
        # the outermost loop: whatever it is, the watchdog is told in words, and it starts a new generation
        traceback.print_exc()
        return _fail(control, f"{type(error).__name__}: {error}", "unknown")
    control.send(messages.WeightsReady(generation, str(path), size_bytes))
    while True:
        select.select([control], [], [])
        if (message := control.receive()) is not None:
            raise ChannelClosed(f"a {type(message).__name__} is not for a holder of weights")


def _fail(control: Channel, reason: str, blame: messages.Blame) -> int:
    with contextlib.suppress(ChannelClosed):
        control.send(messages.ChildFailed(reason[:1000], blame))
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
