"""Spans of requests, of the batches that they went in, and of what workers computed; all made here, in the gateway.

    POST /v2/models/{layer}/infer      a request, from its head to its answer; child of the caller's span
      batch                            from its sending to its answer or its fence
        compute                        the worker's part, placed before the answer by the worker's own count of it

A batch has one parent, its first traced request, and links to all its traced requests; each of those has a link to
the batch. A worker that hangs can tell nothing, so none makes spans: a fence ends what it had, with the fence's cause
as the error, and the requests' spans show a `fence` and, once they have been sent again, a `replay` event.

Attributes of HTTP have their names from https://opentelemetry.io/docs/specs/semconv/http/http-spans/, ours begin with
fdmoe. Most requests of a service with a small ratio are not traced, and cost one random number.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from fdmoe_ops.gateway.batcher import Departure, Key
from fdmoe_ops.gateway.called import TRACEPARENT, Called
from fdmoe_ops.gateway.export import Export
from fdmoe_ops.gateway.reply import Reply
from fdmoe_watchdog.messages import Answer

_ROUTE = "/v2/models/{layer}/infer"
# a span's name is from a closed set, whatever a client calls its method
_METHODS = ("POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAX_LINKS = 128  # the SDK's own limit
_TRACESTATE = b"tracestate"
_propagator = TraceContextTextMapPropagator()
_NO_CONTEXT = Context()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A batch that is with a worker, since `begun_ns` of the wall clock."""

    span: Span
    begun_ns: int
    requests: tuple[Span, ...]


class Traces:
    """`sample_ratio`: of the requests that are part of no trace yet, so many begin one; of the others, those that their
    caller records."""

    def __init__(self, export: Export, sample_ratio: float) -> None:
        self._export = export
        self._tracer = export.tracer
        self._ratio = sample_ratio
        self._sent: dict[Key, _Sent] = {}

    # ---- a request

    def begin(self, name: Called, scope: Scope) -> Span | None:
        """The span of a request that has come, if it is traced. A trace that begins with it gives it its trace id."""
        if name.sampled is None:
            if random.random() >= self._ratio:
                return None
            context = _NO_CONTEXT
        elif not name.sampled:
            return None
        else:
            context = _propagator.extract(_carrier(scope), _NO_CONTEXT)
        method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        span = self._tracer.start_span(f"{method} {_ROUTE}", context, SpanKind.SERVER, _http(scope))
        if not span.is_recording():
            return None  # OTEL_SDK_DISABLED
        name.trace_id = f"{span.get_span_context().trace_id:032x}"
        return span

    def end(self, span: Span, name: Called, layer: str, reply: Reply | None) -> None:
        """It is answered; None: its client went away first."""
        span.set_attribute("fdmoe.request_id", name.id)
        span.set_attribute("fdmoe.layer", layer)
        if reply is None:
            span.set_attribute("error.type", "client_gone")
            span.set_status(Status(StatusCode.ERROR, "the client closed its connection before it had the answer"))
        else:
            span.set_attribute("http.response.status_code", reply.status)
            span.set_attribute("fdmoe.path", reply.path)
            span.set_attribute("fdmoe.tokens", reply.tokens)
            if reply.status >= 500:
                span.set_attribute("error.type", str(reply.status))
                span.set_status(Status(StatusCode.ERROR))
        span.end()

    # ---- a batch

    def sent(self, departure: Departure) -> None:
        """It is about to be sent."""
        traced = [request for request in departure.requests if request.span is not None]
        if not traced:
            return
        batch, key = departure.batch, departure.key
        requests = tuple(request.span for request in traced if request.span is not None)
        begun_ns = time.time_ns()
        span = self._tracer.start_span(
            "batch",
            set_span_in_context(requests[0], _NO_CONTEXT),
            SpanKind.INTERNAL,
            {
                "fdmoe.worker": key.worker,
                "fdmoe.generation": key.generation,
                "fdmoe.batch": batch.batch,
                "fdmoe.layer": batch.layer,
                "fdmoe.tokens": departure.tokens,
                "fdmoe.requests": len(departure.requests),
                "fdmoe.replayed": departure.replayed,
            },
            [Link(request.get_span_context()) for request in requests[:_MAX_LINKS]],
            begun_ns,
        )
        context = span.get_span_context()
        for request in traced:
            assert request.span is not None, "chosen for its span"
            request.span.add_link(context)
            if request.replayed:
                request.span.add_event("replay", {"fdmoe.worker": key.worker, "fdmoe.generation": key.generation})
        self._sent[key] = _Sent(span, begun_ns, requests)

    def answered(self, key: Key, answer: Answer) -> None:
        """The worker's part ends here and now, for all that this process can tell."""
        sent = self._sent.pop(key, None)
        if sent is None:
            return
        status = Status(StatusCode.ERROR, answer.error) if answer.error else None
        now = time.time_ns()
        self._compute(sent, key, answer.path, now - answer.compute_ns, now, status)
        sent.span.set_attribute("fdmoe.path", answer.path)
        if status is not None:
            sent.span.set_status(status)
        sent.span.end(now)

    def fenced(self, key: Key, cause: str) -> None:
        """No answer will come: the worker's part lasted from the sending until now. Once more is nothing."""
        sent = self._sent.pop(key, None)
        if sent is None:
            return
        status = Status(StatusCode.ERROR, f"fenced: {cause}")
        now = time.time_ns()
        where: dict[str, str | int] = {
            "fdmoe.worker": key.worker,
            "fdmoe.generation": key.generation,
            "fdmoe.cause": cause,
        }
        self._compute(sent, key, "", sent.begun_ns, now, status)
        for span in (sent.span, *sent.requests):
            span.add_event("fence", where, now)
        sent.span.set_attribute("error.type", cause)
        sent.span.set_status(status)
        sent.span.end(now)

    def close(self, timeout_s: float) -> None:
        """Spans of batches that are still out end with this process."""
        for key in list(self._sent):
            self.fenced(key, "gateway_stopped")
        self._export.close(timeout_s)

    def _compute(self, sent: _Sent, key: Key, path: str, begun_ns: int, now_ns: int, status: Status | None) -> None:
        attributes: dict[str, str | int] = {"fdmoe.worker": key.worker, "fdmoe.generation": key.generation}
        if path:
            attributes["fdmoe.path"] = path
        parent = set_span_in_context(sent.span, _NO_CONTEXT)
        span = self._tracer.start_span("compute", parent, SpanKind.INTERNAL, attributes, start_time=begun_ns)
        if status is not None:
            span.set_status(status)
        span.end(now_ns)


def _http(scope: Scope) -> dict[str, str | int]:
    host, port = scope["server"] or ("", None)
    attributes: dict[str, str | int] = {
        "http.request.method": scope["method"] if scope["method"] in _METHODS else "_OTHER",
        "http.route": _ROUTE,
        "url.scheme": scope["scheme"],
        "url.path": scope["path"],
        "network.protocol.version": scope["http_version"],
        "server.address": host,
    }
    if port is not None:
        attributes["server.port"] = port
    if scope["client"]:
        attributes["client.address"] = scope["client"][0]
    return attributes


def _carrier(scope: Scope) -> dict[str, str]:
    return {
        name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in (TRACEPARENT, _TRACESTATE)
    }
