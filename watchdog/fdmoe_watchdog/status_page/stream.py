"""GET /events: the page's document as server-sent events, one thread a reader and few readers.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fdmoe_watchdog.status_page.feed import INTERVAL_S, Feed, Reader

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

READERS = 8
# where the server puts the connection, for whom this is an application like any other
CONNECTION = "fdmoe.connection"
# a reader that does not take a document in this time is let go, and comes again if it wants to
_TAKE_S = 5.0
# what waits in the kernel for a slow reader is old by the time it arrives
_WAITING_BYTES = 64 * 1024
_RETRY_S = 5
_HEADERS = [
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),  # nginx would collect it
]


class Streams:
    """A WSGI application. Each stream goes on until its reader leaves or `close` is called."""

    def __init__(self, feed: Feed, readers: int = READERS) -> None:
        self._feed = feed
        self._readers = readers
        self._room = threading.BoundedSemaphore(readers)
        self._closed = threading.Event()

    def __call__(self, environment: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        if self._closed.is_set() or not self._room.acquire(blocking=False):
            text = f"{self._readers} readers are served at once, and there are as many; try again in {_RETRY_S} s\n"
            length = ("Content-Length", str(len(text)))
            kind = ("Content-Type", "text/plain; charset=utf-8")
            start("503 Service Unavailable", [kind, length, ("Retry-After", str(_RETRY_S))])
            return [] if environment["REQUEST_METHOD"] == "HEAD" else [text.encode()]
        try:
            write = start("200 OK", list(_HEADERS))
            if environment["REQUEST_METHOD"] != "HEAD":
                # OSError: the reader is gone, or too slow
                with contextlib.suppress(OSError):
                    self._stream(environment.get(CONNECTION), write)
        finally:
            self._room.release()
        return []

    def close(self) -> None:
        """All streams end, after what they have not told yet."""
        self._closed.set()

    def _stream(self, connection: socket.socket | None, write: Callable[[bytes], object]) -> None:
        if connection is not None:
            connection.settimeout(_TAKE_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _WAITING_BYTES)
        reader = Reader()
        write(b"retry: 1000\n\n")
        while True:
            closed = self._closed.is_set()
            edition = self._feed.latest(last=closed)
            if (document := reader.news(edition)) is not None:
                write(b"id: %d\ndata: %s\n\n" % (edition.clock.number, document))
            if closed:
                return
            self._closed.wait(max(edition.made_at + INTERVAL_S - time.monotonic(), 0.01))
