"""Responses, and how they are sent."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from starlette.types import Send

from fdmoe_ops.gateway.body import Body
from fdmoe_ops.gateway.refusal import Refusal

Headers = list[tuple[bytes, bytes]]
CLOSE = (b"connection", b"close")
# how long a client that is still sending may go on, so that it reads why it was sent away
_LINGER_S = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """A response; `tokens` and `path` are for the metrics."""

    status: int
    headers: Headers
    body: bytes
    path: str = "none"
    tokens: int = 0


def refused(refusal: Refusal) -> Reply:
    headers = [(b"content-type", b"application/json"), *refusal.headers]
    return Reply(refusal.status, headers, msgspec.json.encode({"error": str(refusal)}), refusal.path)


async def send_reply(send: Send, reply: Reply) -> None:
    await _send_head(send, reply)
    await send({"type": "http.response.body", "body": reply.body})


async def send_last_reply(send: Send, reply: Reply, body: Body) -> None:
    """The connection is closed after this one, but not while the client still sends: its system would then throw the
    answer away unread."""
    await _send_head(send, reply)
    await send({"type": "http.response.body", "body": reply.body, "more_body": True})
    await body.discard(_LINGER_S)
    await send({"type": "http.response.body", "body": b""})


async def _send_head(send: Send, reply: Reply) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
