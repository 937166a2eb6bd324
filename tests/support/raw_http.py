"""HTTP as bytes on a socket: requests as no client would send them, and answers as they come."""

from __future__ import annotations

import json
import socket
import struct
from typing import NamedTuple

HIDDEN_SIZE = 8
LAYER = "demo/layers.0"
DEADLINE_S = 10.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        """The text of a refusal, which is all that its JSON says."""
        document = json.loads(self.body)
        assert list(document) == ["error"], document
        text: str = document["error"]
        return text


def post(body: bytes, *lines: str, layer: str = LAYER) -> bytes:
    """A POST of this body to a layer; `lines` are further header lines."""
    head = [f"POST /v2/models/{layer}/infer HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def infer(tokens: int, *lines: str, layer: str = LAYER, **parameters: object) -> bytes:
    """An inference request of `tokens` rows of ones in FP32, as binary data both ways."""
    size_bytes = tokens * HIDDEN_SIZE * 4
    row = {
        "name": "hidden_states", "shape": [tokens, HIDDEN_SIZE], "datatype": "FP32",
        "parameters": {"binary_data_size": size_bytes},
    }  # fmt: skip
    document = {"inputs": [row], "parameters": {"binary_data_output": True, **parameters}}
    head = json.dumps(document).encode()
    data = struct.pack("<f", 1.0) * (tokens * HIDDEN_SIZE)
    return post(head + data, f"Inference-Header-Content-Length: {len(head)}", *lines, layer=layer)


def is_right(answer: Answer, tokens: int) -> bool:
    """Whether it is the answer of a worker that doubles to what `infer` asks."""
    return answer.status == 200 and answer.body.endswith(b"}" + struct.pack("<f", 2.0) * (tokens * HIDDEN_SIZE))


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)


def vanish(connection: socket.socket) -> None:
    """Close at once, with a reset, as a client that crashes does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def receive(connection: socket.socket) -> Answer | None:
    """The next answer whole; None if the connection ends before it begins. Raises TimeoutError after DEADLINE_S."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = _more(connection)
        if not piece:
            assert not received, f"the connection ends inside a head: {received!r}"
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        piece = _more(connection)
        assert piece, "the connection ends inside a body"
        body += piece
    return Answer(int(status.split()[1]), headers, body)


def ended(connection: socket.socket) -> bool:
    """Whether nothing more comes: waits for the other side's end."""
    return not _more(connection)


def exchange(port: int, *pieces: bytes) -> Answer | None:
    """Send on a connection of its own, and the answer."""
    with connect(port) as connection:
        for piece in pieces:
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        return receive(connection)


def _more(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""
