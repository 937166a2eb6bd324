"""The worker's loop: what its page says of batches and of itself."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from waiting import wait_until

from fdmoe_ops.worker.choice import Choice
from fdmoe_ops.worker.engine import Engine
from fdmoe_ops.worker.loop import Loop
from fdmoe_ops.worker.pace import Pace
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.page import Host, Line, Page

READY = messages.WorkerReady(1, (), 16, fused=True)


class Resting:
    """An engine that has nothing to do."""

    def rest(self) -> None: ...


class Control(Channel):
    """The worker's end; `beats` are those that the page had when something was sent."""

    def __init__(self, connected: socket.socket, page: Page) -> None:
        super().__init__(connected)
        self.beats: list[int] = []
        self._page = page

    def send(self, message: messages.Message) -> None:
        self.beats.append(self._page.read(Line.HOST, Host.BEATS))
        super().send(message)


class Bench:
    """A loop in a thread; `control` is the watchdog's end of its channel."""

    def __init__(self, directory: Path) -> None:
        self.page = Page.create(directory / "page", generation=1, slots=1)
        self.socket_path = directory / "worker.sock"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, self.theirs = Channel(ours), Control(theirs, self.page)
        self._loop = Loop(
            cast(Engine, Resting()), Choice(0, 60), Pace(2.5, 0), self.page, self.theirs,
            Listener(self.socket_path), READY, name="a", chaos=False,
        )  # fmt: skip
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with contextlib.suppress(ChannelClosed):
            self._loop.run()

    @property
    def waiting(self) -> int:
        return self.page.read(Line.GATEWAY, 0) - self.page.read(Line.HOST, Host.ANSWERED)


@pytest.fixture
def bench(in_memory: Path) -> Iterator[Bench]:
    bench = Bench(in_memory)
    yield bench
    bench.control.close()
    bench.thread.join(10)


def test_it_shows_a_beat_before_it_says_that_it_is_ready(bench: Bench) -> None:
    bench.thread.start()
    wait_until(lambda: bench.control.receive() == READY)
    assert bench.theirs.beats == [1]


def test_what_a_gateway_that_is_gone_had_counted_does_not_wait_for_the_next_one(bench: Bench) -> None:
    bench.thread.start()
    gateway = Channel.connect(bench.socket_path, messages.Hello(messages.PROTOCOL, "gateway", "a", 1, 1))
    wait_until(lambda: gateway.receive() == READY)
    bench.page.add(Line.GATEWAY, 0)
    assert bench.waiting == 1
    gateway.close()
    wait_until(lambda: bench.waiting == 0)
