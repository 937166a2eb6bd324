"""Rung 2 has a deadline: a worker that cannot be reached is reported, and the next one gets its requests."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.messages import LinkLost, Route, WorkerReady
from fdmoe_watchdog.page import ExitWord, Launch, Line, Page

DEADLINE_S = 0.2
X = np.ones((1, 8), np.float32)


@pytest.fixture
def tree(running_tree: Callable[..., Any]) -> Iterator[Any]:
    with running_tree(route_deadline_s=DEADLINE_S) as tree:
        yield tree


@dataclass
class Mute:
    """A worker that listens, and takes no notice of who connects."""

    page: Page
    listener: Listener
    name: str = "a"
    generation: int = 1

    @property
    def route(self) -> Route:
        return Route(self.name, self.generation, str(self.listener.path), str(self.page.path), "cpu")

    def accept(self) -> Channel:
        while (channel := self.listener.accept()) is None:
            time.sleep(0.001)
        return channel


@pytest.fixture
def mute(tree) -> Iterator[Mute]:
    with mute_in(tree) as mute:
        yield mute


@contextlib.contextmanager
def mute_in(tree: Any) -> Iterator[Mute]:
    stem = tree.run_dir / "worker-a-g1"
    page, listener = Page.create(stem.with_suffix(".page"), generation=1, slots=1), Listener(stem.with_suffix(".sock"))
    with page, contextlib.closing(listener):
        yield Mute(page, listener)


def no_socket(mute: Mute) -> None:
    mute.listener.path.unlink()


def nobody_listens(mute: Mute) -> None:
    mute.listener.close()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bound:
        bound.bind(str(mute.listener.path))


def no_page(mute: Mute) -> None:
    mute.page.path.unlink()


def damaged_page(mute: Mute) -> None:
    mute.page.path.write_bytes(b"noise" * 100)


def no_harm(_mute: Mute) -> None:
    """It takes no notice all the same."""


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (no_socket, "no connection within 0.2 s: [Errno 2] No such file or directory"),
        (nobody_listens, "no connection within 0.2 s: [Errno 111] Connection refused"),
        (no_page, "no connection within 0.2 s: [Errno 2] No such file or directory: "),
        (damaged_page, "no connection within 0.2 s: "),
        (no_harm, "connected, and no word within 0.2 s"),
    ],
    ids=["no_socket", "nobody_listens", "no_page", "damaged_page", "no_word"],
)
def test_who_cannot_be_reached_is_reported_and_the_next_one_answers(
    tree, mute: Mute, wait_until, harm: Callable[[Mute], None], reason: str
) -> None:
    standby = tree.worker("b", 1, automatic=True)
    harm(mute)
    with capture_logs() as logs:
        tree.control.send(mute.route)
        lost = tree.heard(LinkLost)
        wait_until(lambda: any(line["event"] == "no_route" for line in logs), "the log line")
    assert (lost.worker, lost.generation, lost.cause) == ("a", 1, "unreachable")
    assert lost.reason.startswith(reason)
    assert (logs[-1]["worker"], logs[-1]["generation"], logs[-1]["reason"]) == ("a", 1, lost.reason)
    tree.route(standby)
    assert np.array_equal(tree.ask(X).as_numpy("output"), 2 * X)


def test_who_speaks_after_its_report_is_not_listened_to(tree, mute: Mute, layers) -> None:
    tree.control.send(mute.route)
    channel = mute.accept()
    assert tree.heard(LinkLost).cause == "unreachable"
    with contextlib.suppress(ChannelClosed):
        channel.send(WorkerReady(1, layers, 64))
    assert tree.get("/readyz")[0] == 503
    channel.close()


@pytest.mark.parametrize("told", ["fence", "gone", "another route", "a word"])
def test_nothing_is_reported_once_the_route_is_made_or_not_wanted(tree, mute: Mute, layers, told: str) -> None:
    """The deadline of a second one, which comes later, is seen to be over."""
    tree.control.send(mute.route)
    if told == "a word":
        channel = mute.accept()
        channel.send(WorkerReady(1, layers, 64))
    elif told == "fence":
        tree.fence(mute)
    elif told == "gone":
        tree.gone(mute)
    stem = tree.run_dir / "missing"
    device = "cpu:1" if told == "a word" else "cpu"
    tree.control.send(Route("b", 1, f"{stem}.sock", f"{stem}.page", device))
    assert tree.heard(LinkLost).worker == "b", "only the second"


def test_who_is_at_work_for_an_earlier_gateway_has_longer(tree, mute: Mute, wait_until, layers) -> None:
    mute.page.write(Line.LAUNCH, Launch.BEGUN, 7)
    reads: list[bool] = []
    tree.control.send(mute.route)
    channel = mute.accept()
    links = tree.gateway._links
    wait_until(lambda: bool(links._links), "the link")
    (link,) = links._links.values()
    at_work = type(link).is_at_work

    def noted(self: object) -> bool:
        reads.append(at_work(self))
        return reads[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(link), "is_at_work", noted)
        wait_until(lambda: len(reads) >= 2, "two deadlines")
        assert reads == [True, True]
        mute.page.write(Line.EXIT, ExitWord.ENDED, 7)
        channel.send(WorkerReady(1, layers, 64))
        wait_until(lambda: tree.get("/readyz")[0] == 200, "the route")
    channel.close()


@pytest.mark.parametrize("reached", [True, False])
def test_a_pause_of_everybody_is_nobodys_silence(
    running_tree: Callable[..., Any], wait_until, layers, reached: bool
) -> None:
    """Longer than the deadline; who is to connect, or to speak, needs a part of it afterwards."""
    with running_tree(route_deadline_s=1.0) as tree, mute_in(tree) as mute:
        path = mute.listener.path
        if not reached:
            path.rename(path.with_suffix(".away"))
        tree.control.send(mute.route)
        links = tree.gateway._links
        wait_until(lambda: bool(links._wanted), "the route")
        paused = threading.Event()

        def pause() -> None:
            time.sleep(2.0)
            paused.set()

        links._loop.call_soon_threadsafe(pause)
        assert paused.wait(10)
        # the loop turns again, and whatever was due has been looked at
        turned = threading.Event()
        links._loop.call_soon_threadsafe(lambda: links._loop.call_later(0.2, turned.set))
        assert turned.wait(10)
        if not reached:
            path.with_suffix(".away").rename(path)
        channel = mute.accept()
        channel.send(WorkerReady(1, layers, 64))
        wait_until(lambda: tree.get("/readyz")[0] == 200, "the route to be served")
        channel.close()


def test_a_launch_that_ends_and_is_followed_by_nothing_is_no_work(tree, mute: Mute) -> None:
    mute.page.write(Line.LAUNCH, Launch.BEGUN, 7)
    mute.page.write(Line.EXIT, ExitWord.ENDED, 7)
    tree.control.send(mute.route)
    assert tree.heard(LinkLost).reason == "connected, and no word within 0.2 s"


@pytest.mark.parametrize("harm", [no_socket, no_harm], ids=["no_socket", "no_word"])
def test_a_report_that_cannot_be_sent_is_sent_later(
    tree, mute: Mute, harm: Callable[[Mute], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    send, failed = Channel.send, []

    def full_once(channel: Channel, message: Any) -> None:
        if isinstance(message, LinkLost) and not failed:
            failed.append(message)
            raise ChannelClosed("peer does not take messages")
        send(channel, message)

    monkeypatch.setattr(Channel, "send", full_once)
    harm(mute)
    tree.control.send(mute.route)
    assert tree.heard(LinkLost) == failed[0]


def no_descriptors(_path: Path, _hello: object) -> Channel:
    raise OSError(errno.EMFILE, "Too many open files")


def test_a_gateway_without_descriptors_ends_and_blames_no_worker(
    tree, mute: Mute, wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "connect", no_descriptors)
    heard = []
    with capture_logs() as logs:
        tree.control.send(mute.route)
        wait_until(lambda: not tree._thread.is_alive(), "the gateway's end")
    with contextlib.suppress(ChannelClosed):
        while (message := tree.control.receive()) is not None:
            heard.append(type(message))
    assert LinkLost not in heard
    (said,) = (line for line in logs if line["event"] == "no_route")
    assert said["reason"] == "[Errno 24] Too many open files"


def test_while_another_device_serves_it_waits_for_descriptors(
    tree, mute: Mute, wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.route(tree.worker("b", 1, automatic=True), device="cpu:1")
    tried: list[None] = []

    def refused(path: Path, hello: object) -> Channel:
        tried.append(None)
        return no_descriptors(path, hello)

    with monkeypatch.context() as patch:
        patch.setattr(Channel, "connect", refused)
        tree.control.send(mute.route)
        wait_until(lambda: len(tried) > 2 * DEADLINE_S / 0.05, "its deadline has passed")
        assert np.array_equal(tree.ask(X).as_numpy("output"), 2 * X)
    mute.accept()
