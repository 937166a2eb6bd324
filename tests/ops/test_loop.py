"""The worker's loop: what its page says of batches and of itself."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from engine_bench import NAME, EngineBench
from moe_layers import random_tokens, relative_error
from waiting import wait_until

from fdmoe_kernels import reference_moe
from fdmoe_ops.worker import loop
from fdmoe_ops.worker.choice import Choice
from fdmoe_ops.worker.engine import Engine
from fdmoe_ops.worker.errors import BaselineBroken
from fdmoe_ops.worker.loop import Loop
from fdmoe_ops.worker.pace import Pace
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.page import Host, Line, Page

READY = messages.WorkerReady(1, (), 16, fused=True)


class Resting:
    """An engine that has nothing to do; `proofs` counts those of its baseline, of which the third fails."""

    def __init__(self, layers: int) -> None:
        self.layers = dict.fromkeys(map(str, range(layers)))
        self.proofs = 0

    def rest(self) -> None: ...

    def prove_baseline(self) -> None:
        self.proofs += 1
        if self.proofs == 3:
            raise BaselineBroken("it differs")


class Control(Channel):
    """The worker's end; `beats` are those that the page had when something was sent."""

    def __init__(self, connected: socket.socket, page: Page) -> None:
        super().__init__(connected)
        self.beats: list[int] = []
        self._page = page

    def send(self, message: messages.Message) -> None:
        self.beats.append(self._page.read(Line.HOST, Host.BEATS))
        super().send(message)


def loop_over(
    engine: Engine, page: Page, control: Channel, socket_path: Path, *,
    chaos: bool = False, compare_first: bool = False,
) -> Loop:  # fmt: skip
    """Of worker a; none of its batches is compared but what these settings ask for."""
    return Loop(
        engine, Choice(0, 60), Pace(2.5, 0), page, control, Listener(socket_path), READY,
        name="a", chaos=chaos, compare_first=compare_first, idle_proof_s=60.0,
    )  # fmt: skip


class Bench:
    """A loop in a thread, with chaos; `control` is the watchdog's end of its channel."""

    def __init__(self, directory: Path, layers: int = 1) -> None:
        self.engine = Resting(layers)
        self.page = Page.create(directory / "page", generation=1, slots=1)
        self.socket_path = directory / "worker.sock"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, self.theirs = Channel(ours), Control(theirs, self.page)
        self._loop = loop_over(cast(Engine, self.engine), self.page, self.theirs, self.socket_path, chaos=True)
        self.broken = ""
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._loop.run()
        except ChannelClosed:
            pass
        except BaselineBroken as error:
            self.broken = str(error)

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
    assert bench.theirs.beats == [2]


def test_what_a_gateway_that_is_gone_had_counted_does_not_wait_for_the_next_one(bench: Bench) -> None:
    bench.thread.start()
    gateway = Channel.connect(bench.socket_path, messages.Hello(messages.PROTOCOL, "gateway", "a", 1, 1))
    wait_until(lambda: gateway.receive() == READY)
    bench.page.add(Line.GATEWAY, 0)
    assert bench.waiting == 1
    gateway.close()
    wait_until(lambda: bench.waiting == 0)


def test_a_worker_that_has_nothing_to_do_proves_its_baseline_again_and_again_and_ends_when_it_is_broken(
    in_memory: Path,
) -> None:
    bench = Bench(in_memory, layers=1200)  # each once a minute
    bench.thread.start()
    bench.thread.join(10)
    bench.control.close()
    assert (bench.engine.proofs, bench.broken) == (3, "it differs")


def test_one_that_waits_for_a_message_says_so_and_one_that_sleeps_does_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch may be counted some time before it is sent."""
    slept: list[tuple[float, bool]] = []
    clock = SimpleNamespace(
        monotonic=time.monotonic, sleep=lambda seconds: slept.append((seconds, bench.page.snapshot().host_waits))
    )
    monkeypatch.setattr(loop, "time", clock)
    bench.thread.start()
    wait_until(lambda: bench.control.receive() == READY)
    bench.page.add(Line.GATEWAY, 0)
    beats = bench.page.read(Line.HOST, Host.BEATS)
    wait_until(lambda: bench.page.read(Line.HOST, Host.BEATS) > beats + 2)
    wait_until(lambda: bench.page.snapshot().host_waits)
    bench.control.send(messages.Block(3600.0))
    wait_until(lambda: bool(slept))
    assert slept == [(3600.0, False)]


def test_nothing_is_proven_before_its_time(bench: Bench) -> None:
    bench.thread.start()
    wait_until(lambda: bench.page.read(Line.HOST, Host.BEATS) > 3)
    assert bench.engine.proofs == 0


class Serving:
    """A loop over a real engine, on the fused path from the first batch on, with a gateway beside it."""

    def __init__(self, directory: Path, *, compare_first: bool) -> None:
        self._bench = EngineBench(directory)
        self.layer = self._bench.layer
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control, path = Channel(ours), directory / "worker.sock"
        self._loop = loop_over(
            self._bench.engine, self._bench.page, Channel(theirs), path, chaos=True, compare_first=compare_first
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.gateway = Channel.connect(path, messages.Hello(messages.PROTOCOL, "gateway", "a", 1, 1))
        assert self._hear(self.gateway) == READY
        assert self._hear(self.control) == READY
        self.control.send(messages.SetPath("fused"))
        self._batches = 0

    def _run(self) -> None:
        with torch.inference_mode(), contextlib.suppress(ChannelClosed):
            self._loop.run()

    def _hear(self, channel: Channel) -> messages.Message:
        heard: list[messages.Message] = []

        def hear() -> bool:
            message = channel.receive()
            if message is not None:
                heard.append(message)
            return bool(heard)

        wait_until(hear)
        return heard[0]

    def serve(self, x: torch.Tensor) -> tuple[messages.Answer, torch.Tensor, messages.Message | None]:
        """The answer, its rows, and what the watchdog is told of it."""
        segment = self._bench.put(x, 0)
        self._batches += 1
        self.gateway.send(messages.Batch(1, self._batches, NAME, (segment,)))
        answer = self._hear(self.gateway)
        assert isinstance(answer, messages.Answer)
        return answer, self._bench.answer(segment).clone(), self.control.receive()

    def arm(self, fault: messages.KernelFault) -> None:
        self.control.send(messages.ArmFault(fault, 1))
        assert isinstance(self._hear(self.control), messages.FaultArmed)

    def end(self) -> None:
        self.control.close()
        self._thread.join(30)
        self.gateway.close()


@pytest.mark.parametrize("fault", ["wrong", "nan"])
def test_a_wrong_answer_never_leaves_where_each_is_compared_first(in_memory: Path, fault: messages.KernelFault) -> None:
    serving = Serving(in_memory, compare_first=True)
    x = random_tokens(serving.layer, 5, seed=1)
    right = reference_moe(x, serving.layer)
    try:
        answer, rows, told = serving.serve(x)
        assert answer.path == "fused"
        assert relative_error(rows, right) < 1e-5
        assert isinstance(told, messages.Compared)
        assert (told.ok, told.served, told.tokens) == (True, "fused", 5)
        serving.arm(fault)
        answer, rows, told = serving.serve(x)
        assert answer.path == "baseline"
        assert relative_error(rows, right) < 1e-5
        assert isinstance(told, messages.Compared)
        assert (told.ok, told.served) == (False, "baseline")
        # until the watchdog orders anything else
        assert serving.serve(x)[0].path == "baseline"
    finally:
        serving.end()


def test_without_it_a_wrong_answer_that_nobody_compares_leaves(in_memory: Path) -> None:
    serving = Serving(in_memory, compare_first=False)
    x = random_tokens(serving.layer, 5, seed=1)
    try:
        serving.arm("wrong")
        answer, rows, told = serving.serve(x)
        assert (answer.path, told) == ("fused", None)
        assert relative_error(rows, reference_moe(x, serving.layer)) > 1e-2
    finally:
        serving.end()
