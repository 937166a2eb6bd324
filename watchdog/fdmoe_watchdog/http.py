"""The watchdog's HTTP server: /metrics, /livez and /status, in threads of its own: no scrape delays a decision."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.status import TreeView

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment


class _Server(ThreadingMixIn, WSGIServer):
    """A thread a connection, and no more of them than a few scrapers and people need: idle connections must not use
    up the watchdog's file descriptors."""

    daemon_threads = True
    request_queue_size = 64
    _room = threading.BoundedSemaphore(32)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds; a client that sends nothing must not keep its thread

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


class HttpServer:
    """Serves until stopped. `alive` says whether the watchdog's loop still turns."""

    def __init__(
        self, host: str, port: int, metrics: Exposition, view: Callable[[], TreeView], alive: Callable[[], bool]
    ) -> None:
        def app(environment: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            match environment.get("PATH_INFO"):
                case "/metrics":
                    return metrics(environment, start)
                case "/status":
                    return _answer(start, "200 OK", view().to_json(), "application/json")
                case "/livez":
                    ok = alive()
                    text = b"ok\n" if ok else b"the watchdog's loop does not turn\n"
                    return _answer(start, "200 OK" if ok else "503 Service Unavailable", text)
                case path:
                    return _answer(start, "404 Not Found", f"{path}: /metrics, /livez and /status are here\n".encode())

        self._server = make_server(host, port, app, server_class=_Server, handler_class=_Handler)
        bound: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]
        self.url = f"http://{bound[0]}:{bound[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="watchdog-http", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(start: StartResponse, status: str, body: bytes, kind: str = "text/plain; charset=utf-8") -> list[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body]
