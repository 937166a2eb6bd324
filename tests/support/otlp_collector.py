"""A collector of traces for tests: takes OTLP over HTTP on a port of its own and keeps the spans; or fails as told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

_NEEDS = "traces need the extra: pip install 'fdmoe-ops[otel]'"
_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason=_NEEDS)
_trace = pytest.importorskip("opentelemetry.proto.trace.v1.trace_pb2", reason=_NEEDS)
pytest.importorskip("opentelemetry.sdk.trace", reason=_NEEDS)
Span = _trace.Span
DEADLINE_S = 20.0


@dataclass
class Collector:
    """`mode`: take (200), refuse (400, which is not tried again), or hang until the test ends."""

    mode: str = "take"
    spans: list[Span] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    port: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    stopped: threading.Event = field(default_factory=threading.Event)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_for(self, condition: Callable[[list[Span]], bool]) -> list[Span]:
        """All spans, once they fulfil it."""
        with self.changed:
            names = [span.name for span in self.spans]
            assert self.changed.wait_for(lambda: condition(self.spans), DEADLINE_S), f"only these came: {names}"
            return list(self.spans)

    def wait_for_requests(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, DEADLINE_S), f"{len(self.requests)} came"

    def take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        with self.changed:
            self.requests.append((path, headers))
            if self.mode == "take":
                for resource in _service.ExportTraceServiceRequest.FromString(body).resource_spans:
                    self.resources.append(attributes(resource.resource.attributes))
                    self.spans += [span for scope in resource.scope_spans for span in scope.spans]
            self.changed.notify_all()
        if self.mode == "hang":
            self.stopped.wait()
        return 400 if self.mode == "refuse" else 200


def attributes(pairs: Any) -> dict[str, Any]:
    """Of a span, an event, a link or a resource."""

    def value(pair: Any) -> Any:
        return getattr(pair.value, str(pair.value.WhichOneof("value")))

    return {pair.key: value(pair) for pair in pairs}


def failed(span: Span) -> bool:
    return bool(span.status.code == _trace.Status.STATUS_CODE_ERROR)


@contextmanager
def collecting(mode: str = "take") -> Iterator[Collector]:
    collector = Collector(mode)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = collector.take(self.path, {key.lower(): value for key, value in self.headers.items()}, body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Tests look at what came."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            """A client that waits no longer."""

    server = Server(("127.0.0.1", 0), Handler)
    collector.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, name="collector", daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()
