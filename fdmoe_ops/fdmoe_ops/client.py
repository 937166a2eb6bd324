"""One conversation with a running watchdog, over its socket in the run directory."""

from __future__ import annotations

import json
import os
import select
import time
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.messages import (
    PROTOCOL,
    ChaosReply,
    ChaosRequest,
    Fault,
    Hello,
    Message,
    StatusReply,
    StatusRequest,
)

RUN_DIRECTORY_OPTIONS = ("run_dir", "gateway.port")
# the watchdog answers between two readings of the pages, milliseconds apart; seconds mean that it is stopped
ANSWER_DEADLINE_S = 5.0
UNREACHABLE = 3  # the exit code when no watchdog answers
ReplyT = TypeVar("ReplyT", bound=Message)


class WatchdogUnreachable(ConnectionError):
    """Nobody listens on the socket, or whoever does gives no answer; the text names the socket."""


class WatchdogClient:
    """Asks and waits for the answer, at most ANSWER_DEADLINE_S each. All methods raise WatchdogUnreachable."""

    def __init__(self, run_dir: Path) -> None:
        self._socket = run_dir / "watchdog.sock"
        hello = Hello(protocol=PROTOCOL, role="cli", name="cli", generation=0, pid=os.getpid())
        try:
            self._channel = Channel.connect(self._socket, hello)
        except OSError as error:
            raise WatchdogUnreachable(
                f"no watchdog listens on {self._socket} ({error.strerror or error}): is `fdmoe serve` running there? "
                "--run-dir or --gateway-port name another tree"
            ) from error

    def status(self) -> dict[str, Any]:
        """The document that fdmoe_watchdog.status describes."""
        document = json.loads(self._ask(StatusRequest(), StatusReply).status)
        assert isinstance(document, dict), document
        return document

    def arm(self, fault: str) -> ChaosReply:
        """Inject a fault of messages.Fault."""
        return self._ask(ChaosRequest(fault=msgspec.convert(fault, Fault)), ChaosReply)

    @property
    def pid(self) -> int:
        """The watchdog's process, as the kernel knows it."""
        return self._channel.peer_pid

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> WatchdogClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, question: Message, answer: type[ReplyT]) -> ReplyT:
        deadline = time.monotonic() + ANSWER_DEADLINE_S
        try:
            self._channel.send(question)
            while (left := deadline - time.monotonic()) > 0:
                select.select([self._channel], [], [], left)
                message = self._channel.receive()
                if isinstance(message, answer):
                    return message
        except ChannelClosed as error:
            raise WatchdogUnreachable(f"the watchdog on {self._socket} hung up: {error}") from error
        raise WatchdogUnreachable(f"the watchdog on {self._socket} gave no answer in {ANSWER_DEADLINE_S:g} s")
