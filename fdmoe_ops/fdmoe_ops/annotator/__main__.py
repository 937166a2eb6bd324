"""`python -m fdmoe_ops.annotator --settings FILE`: the annotator's process, a child of the watchdog.

The main thread reads what the watchdog says, always and at once; another one writes to Grafana, which may hang.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import structlog

from fdmoe_ops import log
from fdmoe_ops import settings as tree
from fdmoe_ops.annotator.chronicle import Chronicle
from fdmoe_ops.annotator.outbox import Outbox
from fdmoe_ops.annotator.writer import Writer
from fdmoe_ops.grafana.api import Grafana
from fdmoe_ops.grafana.token import read_token
from fdmoe_ops.settings import GrafanaSettings
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.child import die_with_parent
from fdmoe_watchdog.messages import PROTOCOL, Annotated, Happened, Hello

EXIT_FAILED = 1
# a night of failovers while Grafana is away
ROOM = 256
# the watchdog gives its children 3 s to end
DRAIN_S = 2.0


def main(arguments: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m fdmoe_ops.annotator", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    settings = tree.read(parser.parse_args(arguments).settings)
    log.configure(settings.log, "annotator")
    assert settings.run_dir is not None, "a resolved tree has a run_dir"
    # a socket that can be read once this process has been told to end
    told_to_end, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno())
    signal.signal(signal.SIGTERM, lambda *_: None)
    hello = Hello(PROTOCOL, "annotator", "annotator", 0, os.getpid())
    try:
        channel = Channel.connect(settings.run_dir / "watchdog.sock", hello)
        return Annotator(channel, settings.grafana).run(told_to_end)
    except OSError as error:
        structlog.get_logger("fdmoe.annotator").error("no_watchdog", reason=str(error))
        return EXIT_FAILED


class Annotator:
    """`run` ends when the watchdog is gone or says so, and then with what could be written in DRAIN_S."""

    def __init__(self, channel: Channel, settings: GrafanaSettings, room: int = ROOM) -> None:
        self._log = structlog.get_logger("fdmoe.annotator")
        self._channel = channel
        self._chronicle = Chronicle(socket.gethostname())
        self._outbox = Outbox(room)
        self._writer = Writer(
            lambda: Grafana(settings, read_token(settings)), self._report, clock=time.monotonic, pause=time.sleep
        )

    def run(self, told_to_end: socket.socket) -> int:
        writing = threading.Thread(target=self._write, name="writer", daemon=True)
        writing.start()
        sources: list[Channel | socket.socket] = [self._channel, told_to_end]
        try:
            while told_to_end not in select.select(sources, [], [])[0]:
                self._read()
            self._read()  # the last words before the end
        except ChannelClosed as error:
            self._log.info("watchdog_left", reason=str(error))
            return EXIT_FAILED
        self._outbox.close()
        writing.join(DRAIN_S)
        if writing.is_alive():
            self._log.warning("annotations_dropped", waiting=len(self._outbox) + 1)
        return 0

    def _write(self) -> None:
        try:
            self._writer.run(self._outbox)
        except Exception:  # noqa: BLE001 - this is a thread's outermost loop, and the process is of no use without it
            self._log.exception("annotator_broken")
            log.flush()
            os._exit(EXIT_FAILED)

    def _read(self) -> None:
        """All that has come."""
        while (message := self._channel.receive()) is not None:
            assert isinstance(message, Happened), message
            annotation = self._chronicle.tell(message.event)
            if annotation is not None and not self._outbox.put(annotation):
                self._report(Annotated(dropped=1))

    def _report(self, message: Annotated) -> None:
        """From both threads: a packet is sent whole. A watchdog that is gone is seen where it is read from."""
        with contextlib.suppress(ChannelClosed):
            self._channel.send(message)


if __name__ == "__main__":
    sys.exit(main())
