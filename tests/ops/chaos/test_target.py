"""What clients at the door send is asked of the gateway; who else answers there is told from it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from fdmoe_ops.chaos.door import nonsense
from fdmoe_ops.chaos.target import Address, NoTarget, Target


class _Stranger(http.server.BaseHTTPRequestHandler):
    """Answers each request with a page, or with JSON that is not asked for, or turns it away in no words of ours."""

    def do_GET(self) -> None:
        self._answer(200, b"{}" if self.server.server_name == "json" else b"<html></html>")

    def do_POST(self) -> None:
        self._answer(400, b"<html></html>")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def stranger() -> Iterator[http.server.HTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _address(server: http.server.HTTPServer) -> Address:
    return "127.0.0.1", server.server_address[1]


@pytest.mark.parametrize(("kind", "why"), [("html", "JSONDecodeError"), ("json", "KeyError: 'models'")])
def test_who_is_no_gateway_is_told_from_one(stranger: http.server.HTTPServer, kind: str, why: str) -> None:
    stranger.server_name = kind
    with pytest.raises(NoTarget, match=f"what answers there is no gateway of ours: {why}"):
        Target.of_gateway(_address(stranger))


def test_an_address_where_nobody_listens_names_no_layer() -> None:
    with pytest.raises(NoTarget, match=r"the gateway names no layer: .*refused"):
        Target.of_gateway(("127.0.0.1", 1))


def test_who_is_turned_away_in_other_words_was_not_refused(stranger: http.server.HTTPServer) -> None:
    ended = nonsense(_address(stranger), Target("m/layers.0", "FP32", 4), 20)
    assert ended["400"] > 0
    assert ended["refused"] == 0


@pytest.mark.parametrize(("datatype", "size"), [("FP32", 4), ("FP16", 2), ("BF16", 2)])
def test_numbers_are_packed_as_in_a_tensor(datatype: str, size: int) -> None:
    target, numbers = Target("m/layers.0", datatype, 3), [0.5, -1.25, 96.0]
    assert len(target.pack(numbers)) == 3 * size
    assert target.unpack(target.pack(numbers)) == numbers
    assert target.pack([1.0]) == {"FP32": b"\0\0\x80\x3f", "FP16": b"\0\x3c", "BF16": b"\x80\x3f"}[datatype]


def test_a_datatype_that_nobody_serves_is_named() -> None:
    with pytest.raises(ValueError, match="datatype is 'INT8'; FP32, BF16 and FP16 are served"):
        Target("m/layers.0", "INT8", 4).raw(1)


def test_a_layers_name_may_have_spaces() -> None:
    head = Target("a b/layers.0", "FP32", 4).raw(1).split(b"\r\n")[0]
    assert head == b"POST /v2/models/a%20b/layers.0/infer HTTP/1.1"
