"""The clients at the door, against a real gateway: what they count is what the page of faults promises."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import raw_http

from fdmoe_ops.chaos import door, malformed
from fdmoe_ops.chaos.target import Known, NoTarget, Target
from fdmoe_ops.chaos.tree import free_port

TARGET = Target("demo/layers.0", "FP32", 8)


def test_slow_clients_are_told_408(running_tree: Callable[..., Any], wait_until) -> None:
    with running_tree(upload_timeout_s=0.3) as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        assert door.slow_clients(("127.0.0.1", tree.port), TARGET, count=5) == {"408": 5}
        wait_until(lambda: tree.metric("fdmoe_arena_used_bytes") == 0, "the arena is whole")
        labels = {"layer": "demo/layers.0", "path": "none", "code": "408"}
        assert tree.metric("fdmoe_request_duration_seconds_count", **labels) == 5


def test_slow_clients_that_nobody_cuts_off(running_tree: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_SLOW_S", 0.3)
    with running_tree() as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        assert door.slow_clients(("127.0.0.1", tree.port), TARGET, count=3) == {"never cut off": 3}


def test_a_flood_has_a_connection_for_each_request(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    address = ("127.0.0.1", serving.port)
    found = door.flood(address, TARGET, count=40)
    assert set(found) <= {"200", "503"}
    assert found.total() == 40
    # of whom there may be ten files more
    monkeypatch.setattr(door, "_OTHER_FILES", limits[1] - 10)
    found = door.flood(address, TARGET, count=43)
    assert found.pop("connections") == 10
    assert set(found) <= {"200", "503"}
    assert found.total() == 43
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


@contextlib.contextmanager
def saying(answer: bytes | None) -> Iterator[tuple[str, int]]:
    """A server that reads a request and says this, and hangs up; with None it keeps silent until the end."""
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client = stack.enter_context(listening.accept()[0])
                    if answer is not None:
                        client.recv(65536)
                        client.sendall(answer)
                        # one that has read it may be gone
                        with contextlib.suppress(OSError):
                            client.shutdown(socket.SHUT_RDWR)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listening.getsockname()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    ("answer", "ended"),
    [
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n", {"503": 3}),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", {"503 without Retry-After": 3}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhalf", {"broken: IncompleteReadError": 3}),
        (None, {"silence": 3}),
    ],
    ids=["told to come back", "not told when", "cut off", "silence"],
)
def test_what_a_flood_must_not_end_with(
    answer: bytes | None, ended: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_FLOOD_DEADLINE_S", 0.3 if answer is None else 30.0)
    with saying(answer) as address:
        assert door.flood(address, TARGET, count=3) == ended


@pytest.mark.parametrize(("output", "ended"), [(b"right", {"200": 3}), (b"wrong", {"wrong": 3})])
def test_the_answers_of_a_flood_are_compared_where_they_are_known(output: bytes, ended: dict[str, int]) -> None:
    answer = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2\r\nContent-Length: 7\r\n\r\n{}" + output
    known = Known(1, bytes(32), lambda output: output != b"right")
    with saying(answer) as address:
        assert door.flood(address, replace(TARGET, known=known), count=3) == ended
        assert door.flood(address, TARGET, count=3) == {"200": 3}


def test_a_200_to_json_that_nobody_can_read_is_no_fair_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malformed, "requests", lambda *_, **__: [raw_http.post(b"[" * 5_000)])
    known = Known(1, bytes(32), lambda _: False)
    with saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}") as address:
        assert door.nonsense(address, replace(TARGET, known=known)) == {"200 to nonsense": 1}


def test_a_flood_that_nobody_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_FLOOD_DEADLINE_S", 0.2)
    assert door.flood(("127.0.0.1", free_port()), TARGET, count=3) == {"no connection": 3}


def test_what_is_sent_is_asked_of_the_gateway(serving: Any, layers: Any) -> None:
    assert Target.of_gateway(("127.0.0.1", serving.port)) == TARGET
    for layer in layers:
        answer = raw_http.exchange(serving.port, Target(layer.name, layer.dtype, layer.hidden_size).raw(1))
        assert answer is not None
        assert answer.status == 200, answer


def test_a_gateway_that_serves_no_layer_yet_names_none(tree: Any) -> None:
    with pytest.raises(NoTarget, match=r"^the gateway names no layer: 503 .*no worker has been ready yet"):
        Target.of_gateway(("127.0.0.1", tree.port))
