"""The watchdog's HTTP server: status page, metrics and liveness, in threads of its own: no reader delays a decision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.status import TreeView
from fdmoe_watchdog.status_page import files
from fdmoe_watchdog.status_page.feed import Feed
from fdmoe_watchdog.status_page.live import LiveView
from fdmoe_watchdog.status_page.stream import CONNECTION, Streams

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, and no more of them than a few scrapers and people need: idle connections must not use
    up the watchdog's file descriptors."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *arguments: Any, **more: Any) -> None:
        self._room = threading.BoundedSemaphore(32)
        super().__init__(*arguments, **more)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that sends nothing must not keep its thread

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), CONNECTION: self.connection}

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


class HttpServer:
    """Serves until stopped. `alive` says whether the watchdog's loop still turns."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Exposition,
        view: Callable[[], TreeView],
        live: Callable[[], LiveView],
        alive: Callable[[], bool],
    ) -> None:
        page = files.load()
        self._streams = streams = Streams(Feed(live))

        def answer(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            match environment.get("PATH_INFO"):
                case "/events":
                    return streams(environment, start)
                case "/status":
                    return _answer(start, "200 OK", view().to_json(), "application/json")
                case "/livez":
                    ok = alive()
                    text = b"ok\n" if ok else b"the watchdog's loop does not turn\n"
                    return _answer(start, "200 OK" if ok else "503 Service Unavailable", text)
                case path if path in page:
                    return _page(environment, start, page[path])
                case path:
                    places = "/, /events, /metrics, /livez and /status"
                    return _answer(start, "404 Not Found", f"{path}: {places} are here\n".encode())

        def app(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            def start_safely(status: str, headers: list[tuple[str, str]], *more: Any) -> Callable[[bytes], object]:
                return start(status, [*headers, *files.SECURITY_HEADERS], *more)

            method = environment["REQUEST_METHOD"]
            if environment.get("PATH_INFO") == "/metrics":
                return metrics(environment, start_safely)
            if method not in ("GET", "HEAD"):
                text = f"the method is {method}; GET and HEAD are allowed\n".encode()
                return _answer(start_safely, "405 Method Not Allowed", text, more=[("Allow", "GET, HEAD")])
            body = answer(environment, start_safely)
            return [] if method == "HEAD" else body

        self._server = make_server(host, port, app, server_class=_Server, handler_class=_Handler)
        bound: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]
        self.url = f"http://{bound[0]}:{bound[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="watchdog-http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._streams.close()
        self._server.shutdown()
        self._server.server_close()


def _page(environment: WSGIEnvironment, start: StartResponse, file: files.PageFile) -> list[bytes]:
    """Asked for anew each time, so that a page never outlives its watchdog's version; unchanged, it is not sent."""
    headers = [("Cache-Control", "no-cache"), ("ETag", file.etag)]
    if environment.get("HTTP_IF_NONE_MATCH") == file.etag:
        start("304 Not Modified", [*headers, ("Content-Length", str(len(file.body)))])
        return []
    return _answer(start, "200 OK", file.body, file.kind, headers)


def _answer(
    start: Callable[..., object],
    status: str,
    body: bytes,
    kind: str = "text/plain; charset=utf-8",
    more: Sequence[tuple[str, str]] = (),
) -> list[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body))), *more])
    return [body]
