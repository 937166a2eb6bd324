"""GET /events on real sockets: order, bound, readers that are slow or leave, and the end."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import status_views
from page_server import PageServer, serving
from waiting import wait_until

from fdmoe_watchdog.status_page import stream

DEADLINE_S = 20.0


@pytest.fixture
def server() -> Iterator[PageServer]:
    with serving(status_views.live(status_views.tree())) as server:
        yield server


class Reader:
    """A client that reads events from a connection of its own."""

    def __init__(self, server: PageServer) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        self._connection.request("GET", "/events")
        self.answer = self._connection.getresponse()

    def event(self) -> tuple[int, dict[str, Any]]:
        """The next event's id and document. Raises EOFError at the stream's end."""
        fields: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode()
            if not line:
                raise EOFError
            if line == "\n" and "data" in fields:
                return int(fields["id"]), json.loads(fields["data"])
            name, _, value = line.rstrip("\n").partition(": ")
            fields[name] = value

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            if condition(document := self.event()[1]):
                return document
        raise AssertionError("the document did not come in time")

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def _streams() -> int:
    return sum("process_request" in thread.name for thread in threading.enumerate())


def test_documents_come_in_order_and_only_what_changed(server: PageServer) -> None:
    reader = Reader(server)
    assert reader.answer.status == 200
    assert reader.answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert reader.answer.headers["Cache-Control"] == "no-store"
    number, whole = reader.event()
    assert number == whole["clock"]["number"]
    assert whole["headline"]["words"] == "Serving on fused. 2 of 2 workers ready."
    # a sign of life although nothing changes
    later, tick = reader.event()
    assert later > number
    assert set(tick) == {"clock"}
    server.live = status_views.live(status_views.tree(path="baseline"))
    changed = reader.until(lambda document: "devices" in document)
    assert changed["devices"][0]["path"] == "baseline"
    assert "events" not in changed
    assert changed["clock"]["number"] > later
    reader.close()


def test_a_reader_that_comes_again_gets_everything_again(server: PageServer) -> None:
    for _ in range(2):
        reader = Reader(server)
        assert "devices" in reader.event()[1]
        reader.close()


def test_there_are_so_many_readers_and_the_next_is_told_when_to_come(server: PageServer) -> None:
    readers = [Reader(server) for _ in range(stream.READERS)]
    assert [reader.answer.status for reader in readers] == [200] * 8
    for reader in readers:
        reader.event()
    refused = Reader(server)
    assert refused.answer.status == 503
    assert refused.answer.headers["Retry-After"] == "5"
    assert refused.answer.read() == b"8 readers are served at once, and there are as many; try again in 5 s\n"
    # the others' room is not theirs
    for path in ("/status", "/metrics", "/livez", "/"):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)
        connection.request("GET", path)
        assert connection.getresponse().status == 200
        connection.close()
    readers.pop().close()

    def served() -> bool:
        reader = Reader(server)
        with contextlib.closing(reader):
            return reader.answer.status == 200

    wait_until(served, DEADLINE_S)
    for reader in readers:
        reader.close()


def test_a_reader_that_does_not_read_is_let_go_and_holds_up_nobody(
    server: PageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "_TAKE_S", 0.2)
    monkeypatch.setattr(stream, "INTERVAL_S", 0.01)
    monkeypatch.setattr("fdmoe_watchdog.status_page.feed.INTERVAL_S", 0.0)
    server.live = large = status_views.live(status_views.tree(events=status_views.EVENTS), samples=240)
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(("127.0.0.1", server.port))
    slow.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until(lambda: _streams() == 1, DEADLINE_S)
    reader = Reader(server)
    reader.event()
    # documents of 15 kB, until what the two systems keep for the one that does not read is full
    for number in range(1, 10_000):
        server.live = replace(large, first=number * 1000)
        reader.until(lambda document: "samples" in document)
        if _streams() == 1:
            break
    assert _streams() == 1, "the slow reader still has its thread"
    slow.close()
    reader.close()


def test_a_reader_that_leaves_gives_its_place_back(server: PageServer) -> None:
    reader = Reader(server)
    reader.event()
    assert _streams() == 1
    reader.close()
    wait_until(lambda: _streams() == 0, DEADLINE_S)


def test_streams_end_with_the_last_view_when_the_watchdog_stops() -> None:
    with serving(status_views.live(status_views.tree())) as server:
        reader = Reader(server)
        reader.event()
        server.live = status_views.live(status_views.tree(draining=True))
    documents = []
    with contextlib.suppress(EOFError):
        while True:
            documents.append(reader.event()[1])
    assert documents[-1]["headline"]["badge"] == "Draining"
    reader.close()
    wait_until(lambda: _streams() == 0, DEADLINE_S)


def test_a_stuck_loop_shows_in_the_age_of_the_view(server: PageServer) -> None:
    reader = Reader(server)
    assert reader.event()[1]["clock"]["age_s"] < 1
    server.turning = False
    server.live = replace(server.live, taken_at=time.monotonic() - 60)
    assert 60 <= reader.until(lambda document: document["clock"]["age_s"] > 1)["clock"]["age_s"] < 60 + DEADLINE_S
    reader.close()
