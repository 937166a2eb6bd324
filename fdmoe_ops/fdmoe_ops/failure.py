"""How a child of the watchdog ends when it cannot do its work."""

from __future__ import annotations

import contextlib
import os
from typing import NoReturn

from fdmoe_ops import log
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed

EXIT_FAILED = 1
# less than recovery.host_deadline_s: a worker that sleeps for longer over a batch ends before it has said why
_FLUSH_S = 0.2


def fail(control: Channel, reason: str, blame: messages.Blame) -> NoReturn:
    """Tell the watchdog why, in words, and end this process."""
    # first, for the watchdog may end this process as soon as it knows
    log.flush(_FLUSH_S)
    with contextlib.suppress(ChannelClosed):
        control.send(messages.ChildFailed(reason[:1000], blame))
    # without the interpreter's own end: tearing down a broken CUDA context can take seconds, or for ever
    os._exit(EXIT_FAILED)
