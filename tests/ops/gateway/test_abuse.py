"""Clients that are slow, broken, gone or too large: each is told so or cut off, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator

import pytest
import raw_http

from fdmoe_ops.gateway.address import bind

REQUEST = raw_http.infer(64)
BODY_AT = REQUEST.index(b"\r\n\r\n") + 4
TENSOR_BYTES = 64 * 32
CHUNKED = b"POST /v2/models/demo/layers.0/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def hurried(running_tree) -> Iterator[object]:
    """A gateway whose clients have a quarter of a second for a head or a body, and a worker that answers at once."""
    with pytest.MonkeyPatch.context() as patch, running_tree(upload_timeout_s=0.25) as tree:
        patch.setattr("fdmoe_ops.gateway.reply._LINGER_S", 0.05)
        tree.route(tree.worker("a", 1, automatic=True))
        yield tree


def trickle(connection: socket.socket, data: bytes) -> None:
    """A byte at a time, a hundred a second, until the other side says something or hangs up."""
    for index in range(len(data)):
        if select.select([connection], [], [], 0.01)[0]:
            return
        with contextlib.suppress(OSError):
            connection.sendall(data[index : index + 1])
    raise AssertionError(f"{len(data)} bytes were taken")


def untouched(tree, wait_until) -> None:
    """Nothing is left of what came before, and a good request is served."""
    wait_until(lambda: tree.metric("fdmoe_requests_in_flight") == 0, "no request is in flight")
    wait_until(lambda: tree.metric("fdmoe_arena_used_bytes") == 0, "the arena is whole")
    assert tree.metric("fdmoe_queue_depth") == 0
    assert raw_http.is_right(raw_http.exchange(tree.port, raw_http.infer(2)), 2)


@pytest.mark.parametrize("data", [REQUEST[:60] + b"a" * 1000, b"\r\n" * 500], ids=["head", "empty lines"])
def test_a_head_that_comes_a_byte_at_a_time(hurried, wait_until, data: bytes) -> None:
    before = hurried.metric("fdmoe_refused_requests_total", reason="head_timeout")
    with raw_http.connect(hurried.port) as connection:
        trickle(connection, data)
        answer = raw_http.receive(connection)
        assert (answer.status, answer.error) == (
            408,
            "the request's head was not complete 0.25 s after its first byte",
        )
        assert (answer.headers["connection"], answer.headers["content-type"]) == ("close", "application/json")
        assert raw_http.ended(connection)
    assert hurried.metric("fdmoe_refused_requests_total", reason="head_timeout") == before + 1
    untouched(hurried, wait_until)


@pytest.mark.parametrize("come", [BODY_AT, BODY_AT + 20, len(REQUEST) - 1000], ids=["head", "JSON", "tensor"])
@pytest.mark.parametrize("more", [0, 900], ids=["stops", "trickles"])
def test_a_body_that_does_not_come(hurried, wait_until, come: int, more: int) -> None:
    with raw_http.connect(hurried.port) as connection:
        connection.sendall(REQUEST[:come])
        if more:
            trickle(connection, REQUEST[come : come + more])
        answer = raw_http.receive(connection)
        assert (answer.status, answer.error) == (408, "the body was not complete after 0.25 s")
        assert answer.headers["connection"] == "close"
        assert raw_http.ended(connection)
    untouched(hurried, wait_until)


def test_who_was_answered_has_to_send_the_rest_in_time_or_is_cut_off(hurried, wait_until) -> None:
    refused = raw_http.post(bytes(1000), layer="nobody")
    with raw_http.connect(hurried.port) as connection:
        connection.sendall(refused[:-900])
        assert raw_http.receive(connection).status == 404
        trickle(connection, refused[-900:])
        assert raw_http.ended(connection)
    with raw_http.connect(hurried.port) as connection:
        connection.sendall(refused[:-900])
        assert raw_http.receive(connection).status == 404
        connection.sendall(refused[-900:] + raw_http.infer(3))
        assert raw_http.is_right(raw_http.receive(connection), 3)
    untouched(hurried, wait_until)


def test_a_connection_on_which_nothing_comes_is_closed(running_tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fdmoe_ops.gateway.server._KEEP_ALIVE_S", 0.1)
    with running_tree() as tree:
        with raw_http.connect(tree.port) as connection:
            assert raw_http.ended(connection)
        with raw_http.connect(tree.port) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw_http.receive(connection).status == 200
            assert raw_http.ended(connection)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 40_000 + b"\r\n",
        b"GET /v2 HTTP/1.1\r\nX: " + b"a" * 400_000,
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 40_000,
        CHUNKED + b"0\r\nX: " + b"a" * 400_000,
    ],
    ids=["path", "header", "headers", "unfinished", "trailers", "unfinished trailer"],
)
def test_a_head_or_trailer_that_is_too_large(serving, wait_until, request_bytes: bytes) -> None:
    before = serving.metric("fdmoe_refused_requests_total", reason="head_size")
    with raw_http.connect(serving.port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request_bytes)
        with contextlib.suppress(ConnectionResetError):  # what it still sends may cost the client its answer
            answer = raw_http.receive(connection)
            if answer is not None:
                assert (answer.status, answer.error) == (431, "the request's head is larger than 65536 bytes")
    wait_until(
        lambda: serving.metric("fdmoe_refused_requests_total", reason="head_size") == before + 1, "it is counted"
    )
    untouched(serving, wait_until)


@pytest.mark.parametrize(
    ("request_bytes", "text"),
    [
        (b"hello\r\n\r\n", "Invalid method encountered"),
        (b"GET /livez HTTP/1.1\r\nno header\r\n\r\n", "Invalid header token"),
        (b"GET /livez HTTP/3.7\r\n\r\n", "Invalid HTTP version"),
        (raw_http.post(b"", "Transfer-Encoding: chunked"), "Transfer-Encoding can't be present with Content-Length"),
        (raw_http.post(b"", "Content-Length: 5"), "Duplicate Content-Length"),
    ],
)
def test_what_is_no_http(serving, wait_until, request_bytes: bytes, text: str) -> None:
    answer = raw_http.exchange(serving.port, request_bytes)
    assert (answer.status, answer.error) == (400, f"this is no HTTP/1.1 request: {text}")
    assert answer.headers["connection"] == "close"
    untouched(serving, wait_until)


UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x")


def test_an_upgrade_is_not_taken(serving) -> None:
    with raw_http.connect(serving.port) as connection:
        connection.sendall("\r\n".join(["GET /livez HTTP/1.1", "Host: x", *UPGRADE, "", ""]).encode())
        answer = raw_http.receive(connection)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert raw_http.ended(connection), "its parser reads no further"
    answer = raw_http.exchange(serving.port, raw_http.infer(2, *UPGRADE))
    assert (answer.status, answer.error) == (
        400,
        "this is no HTTP/1.1 request: it has a body and asks for an upgrade; leave the header Upgrade out",
    )


def test_a_prometheus_that_asks_for_no_version(serving) -> None:
    lines = b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text/plain; version=new\r\n\r\n"
    answer = raw_http.exchange(serving.port, lines)
    assert (answer.status, answer.error) == (
        406,
        "Accept is 'text/plain; version=new'; a version in it is digits with dots",
    )


def test_a_client_that_reads_nothing_is_dropped_by_the_system_after_a_minute() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


CUTS = [0, 30, BODY_AT, BODY_AT + 20, len(REQUEST) - TENSOR_BYTES, len(REQUEST) - 1000, len(REQUEST)]


@pytest.mark.parametrize("leave", [socket.socket.close, raw_http.vanish], ids=["closes", "resets"])
def test_clients_that_leave_at_every_stage(tree, wait_until, leave) -> None:
    worker = tree.worker("a", 1)
    tree.route(worker)
    running = raw_http.connect(tree.port)
    running.sendall(REQUEST)
    batch = worker.next_batch()
    for cut in CUTS:
        connection = raw_http.connect(tree.port)
        connection.sendall(REQUEST[:cut])
        in_flight, used_bytes = 1 + (cut >= BODY_AT), 4096 * (1 + (cut >= len(REQUEST) - TENSOR_BYTES))
        wait_until(lambda here=in_flight: tree.metric("fdmoe_requests_in_flight") == here, f"{cut} bytes have come")
        wait_until(lambda here=used_bytes: tree.metric("fdmoe_arena_used_bytes") == here, f"{cut} bytes have come")
        leave(connection)
        wait_until(lambda: tree.metric("fdmoe_requests_in_flight") == 1, "the one with the worker")
        assert tree.metric("fdmoe_arena_used_bytes") == 4096
    leave(running)
    wait_until(lambda: tree.metric("fdmoe_requests_in_flight") == 0, "nobody is there")
    worker.answer(batch)
    wait_until(lambda: tree.metric("fdmoe_arena_used_bytes") == 0, "the arena is whole")
    unread = raw_http.connect(tree.port)
    unread.sendall(raw_http.infer(1))
    worker.answer(worker.next_batch())
    wait_until(lambda: tree.metric("fdmoe_requests_in_flight") == 0, "it is answered")
    leave(unread)
    assert tree.metric("fdmoe_arena_used_bytes") == 0


def test_slow_uploads_hold_half_the_queue_at_most_and_no_longer_than_their_time(running_tree, wait_until) -> None:
    with running_tree(max_queue_bytes=16 * 1024, max_queue_tokens=1024, upload_timeout_s=1.0) as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        slow = [raw_http.connect(tree.port) for _ in range(2)]
        for held, connection in enumerate(slow, 1):
            connection.sendall(REQUEST[:-1])
            wait_until(lambda held=held: tree.metric("fdmoe_arena_used_bytes") == 4096 * held, "its areas")
        refused = raw_http.connect(tree.port)
        refused.sendall(REQUEST[:-1])
        answer = raw_http.receive(refused)
        assert (answer.status, answer.error) == (
            503,
            "8192 bytes are held for bodies that are being read; with 4096 more than 8192 would",
        )
        assert answer.headers["retry-after"] == "3"
        assert tree.metric("fdmoe_refused_requests_total", reason="uploads") == 1
        assert raw_http.is_right(raw_http.exchange(tree.port, REQUEST), 64), "whole requests are no uploads"
        for connection in slow:
            answer = raw_http.receive(connection)
            assert (answer.status, answer.error) == (408, "the body was not complete after 1 s")
        for connection in (*slow, refused):
            connection.close()
        untouched(tree, wait_until)
