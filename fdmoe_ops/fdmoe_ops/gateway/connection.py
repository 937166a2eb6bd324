"""A client's connection: uvicorn's, and what it leaves to a proxy in front of it.

A head (request line and headers) has a size and a deadline, and so has whatever else of a message is not body. What is
no HTTP is answered in JSON. A client that was answered before it had sent its body gets as long for the rest of it, so
that the connection can be used again. A connection on which nothing happens is closed after the same idle time whether
it had a request before or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fdmoe_ops.gateway.called import HEADER, new_id
from fdmoe_ops.gateway.refusal import Reason

# nginx and Apache take 32 KiB and 800 KiB by default
MAX_HEAD_BYTES = 64 * 1024


class _Unreadable(Exception):
    """Raised inside the parser, which wraps it."""


class _TooLarge(_Unreadable):
    pass


class Connection(HttpToolsProtocol):
    """`timeout_s` is for a head, and for the rest of a body that nobody reads any more."""

    def __init__(self, timeout_s: float, refused: Callable[[Reason], None], **given: Any) -> None:
        super().__init__(**given)
        self._timeout_s = timeout_s
        self._refused = refused
        self._in_head = True  # of the next request, from the end of the last one on
        self._heads = 0
        self._pending_bytes = 0  # since a head ended or a piece of a body came: of a head, a trailer or a chunk's size
        self._timer: asyncio.TimerHandle | None = None

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        self._close_when_idle()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        in_head, heads = self._in_head, self._heads
        self._pending_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return  # the answer to this request is the last one here
        except httptools.HttpParserError as error:
            # of an error in a callback, what it was
            reason = error.__context__ or error
            if isinstance(reason, _TooLarge):
                self._refuse_head_size()
            else:
                self._refuse(400, Reason.HEAD_MALFORMED, f"this is no HTTP/1.1 request: {reason}")
            return
        if self._pending_bytes > MAX_HEAD_BYTES:
            self._refuse_head_size()
        elif in_head and heads == self._heads and self._timer is None:
            self._timer = self.loop.call_later(self._timeout_s, self._head_too_late)

    # ---- what the parser calls

    def on_headers_complete(self) -> None:
        if self._pending_bytes > MAX_HEAD_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            raise _TooLarge
        upgrade = self.parser.should_upgrade()
        if upgrade and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            # httptools would skip the body
            raise _Unreadable("it has a body and asks for an upgrade; leave the header Upgrade out")
        super().on_headers_complete()
        self._in_head = False
        self._heads += 1
        self._pending_bytes = 0
        if self._timer is not None:
            self._stop_timer()
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if upgrade:
            # to no other protocol: the request is answered as it is, but the parser reads no further
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._pending_bytes = 0
        if self._timer is not None:
            self._stop_timer()
        super().on_message_complete()
        if self.cycle.response_complete:
            self._close_when_idle()

    # ---- what uvicorn calls

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._timer = self.loop.call_later(self._timeout_s, self.transport.close)

    # ---- parts of the above

    def _close_when_idle(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_too_late(self) -> None:
        self._refuse(
            408, Reason.HEAD_TIMEOUT, f"the request's head was not complete {self._timeout_s:g} s after its first byte"
        )

    def _refuse_head_size(self) -> None:
        self._refuse(431, Reason.HEAD_SIZE, f"the request's head is larger than {MAX_HEAD_BYTES} bytes")

    def _refuse(self, status: int, reason: Reason, text: str) -> None:
        """The last answer on this connection; none where another request's is still to come or has begun."""
        self._stop_timer()
        self._refused(reason)
        cycle = self.cycle
        idle = cycle is None or cycle.response_complete
        in_its_body = not self._in_head and not self.pipeline and not cycle.response_started
        if idle or in_its_body:
            body = msgspec.json.encode({"error": text})
            headers = [
                *self.server_state.default_headers,
                (HEADER, new_id().encode("ascii")),
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"connection", b"close"),
            ]
            lines = [b"%s: %s\r\n" % header for header in headers]
            self.transport.write(b"".join([STATUS_LINE[status], *lines, b"\r\n", body]))
        self.transport.close()
