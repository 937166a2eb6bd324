"""POST /v2/models/{layer}/infer: from the socket into the arena, through a worker, and out of the arena again."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import structlog
from starlette.types import Receive, Scope, Send

from fdmoe_ops.arena import ALIGNMENT_BYTES, Arena
from fdmoe_ops.gateway import called, deadline, protocol
from fdmoe_ops.gateway.admission import QueueFull
from fdmoe_ops.gateway.batcher import Batcher, Outcome, Request
from fdmoe_ops.gateway.body import Body
from fdmoe_ops.gateway.called import Called
from fdmoe_ops.gateway.link import Links
from fdmoe_ops.gateway.metrics import Metrics, exemplar
from fdmoe_ops.gateway.pace import retry_after_s
from fdmoe_ops.gateway.protocol import Parsed, Served
from fdmoe_ops.gateway.refusal import ClientGone, Reason, Refusal
from fdmoe_ops.gateway.reply import CLOSE, Reply, refused, send_last_reply, send_reply
from fdmoe_ops.gateway.waiting import Waiter, WaitingRoom
from fdmoe_watchdog.messages import LayerInfo

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from fdmoe_ops.gateway.traces import Traces

CLIENT_GONE = 499  # as nginx counts them; no client sees it


class Infer:
    """The ASGI endpoint: one call a request, in the event loop's thread, without a task of its own."""

    def __init__(
        self,
        *,
        arena: Arena,
        batcher: Batcher,
        links: Links,
        room: WaitingRoom,
        metrics: Metrics,
        traces: Traces | None,
        retry_after_s: int,
    ) -> None:
        self.draining = False
        self._traces = traces
        self._arena = arena
        self._batcher = batcher
        self._links = links
        self._room = room
        self._metrics = metrics
        self._retry_after_s = retry_after_s
        self._log = structlog.get_logger("fdmoe.gateway")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.monotonic()
        metrics = self._metrics
        metrics.requests_in_flight += 1
        name = called.from_headers(scope["headers"])
        span = None if self._traces is None else self._traces.begin(name, scope)
        layer_name, reply = "", None
        body = Body(receive)
        try:
            if scope["method"] != "POST":
                raise Refusal(405, f"the method is {scope['method']}; POST is allowed", headers=((b"allow", b"POST"),))
            if self.draining:
                raise Refusal(503, "draining: no new requests are taken", reason=Reason.DRAINING)
            layer = self.layer(scope["path_params"]["name"])
            layer_name = layer.name
            reply = await self._reply(layer, scope, receive, body, arrived, name, span)
        except Refusal as refusal:
            reply = self._refused(refusal)
        except ClientGone:
            pass
        except Exception as error:  # noqa: BLE001
            # the outermost of a request: it is counted and answered like any other
            self._log.exception("request_failed", layer=layer_name, request_id=name.id, trace_id=name.trace_id)
            reply = refused(Refusal(500, f"the gateway failed: {type(error).__name__}"))
        finally:
            metrics.requests_in_flight -= 1
        path = reply.path if reply else "none"
        code = str(reply.status if reply else CLIENT_GONE)
        tokens = reply.tokens if reply else 0
        metrics.answered(layer_name, path, code, time.monotonic() - arrived, tokens, exemplar(name))
        if self._traces is not None and span is not None:
            self._traces.end(span, name, layer_name, reply)
        if reply is None:
            return
        reply.headers.append((called.HEADER, name.id.encode("ascii")))
        if self.draining or reply.status == 408:
            reply.headers.append(CLOSE)
            await send_last_reply(send, reply, body)
        else:
            await send_reply(send, reply)

    def layers(self) -> list[str]:
        """The names of all served layers. Raises Refusal: 503 before the first route."""
        if not self._links.started:
            raise Refusal(503, "no worker has been ready yet", reason=Reason.STARTING)
        return list(self._links.layers)

    def layer(self, name: str) -> LayerInfo:
        """The served layer of this name, or of NAME/versions/1. Raises Refusal: 404, or 503 before the first route."""
        layers = self._links.layers
        layer = layers.get(name)
        if layer is not None:
            return layer
        names = self.layers()
        base, _, version = name.rpartition("/versions/")
        if base not in layers:
            raise Refusal(404, f"layer {name!r} is not served; these are: {', '.join(names)}")
        if version != protocol.VERSION:
            raise Refusal(404, f"version {version!r} of {base} is not served; {protocol.VERSION!r} is")
        return layers[base]

    async def _reply(
        self,
        layer: LayerInfo,
        scope: Scope,
        receive: Receive,
        body: Body,
        arrived: float,
        name: Called,
        span: Span | None,
    ) -> Reply:
        token_limit = self._token_limit(layer)
        body.announce(scope, token_limit * protocol.row_bytes(layer))
        waiter = self._room.enter(receive, arrived, deadline.from_headers(scope["headers"]))
        request = None
        try:
            head, rest = await body.json()
            parsed = protocol.parse(head, layer, token_limit, body.following_bytes)
            name.also(parsed.id)
            if parsed.tokens == 0:
                return self._answer(parsed, layer, b"", protocol.NOBODY, name)
            if parsed.timeout_s is not None:
                self._room.limit(waiter, parsed.timeout_s)
            request = self._reserve(layer, parsed, waiter, name, span, upload=not body.complete)
            await self._fill(request, parsed, body, rest)
            self._batcher.enqueue(request)
            self._links.push_soon()
            outcome = await self._room.outcome(waiter)
            if outcome.answer.error:
                raise Refusal(500, f"the worker could not run it: {outcome.answer.error}", path=outcome.answer.path)
            assert request.output_offset is not None, "answered without an output area"
            output = self._arena.area(request.output_offset, request.size_bytes)
            return self._answer(parsed, layer, output, _served(outcome, request), name)
        except asyncio.CancelledError as error:
            if waiter.ended is None:
                raise
            waiter.task.uncancel()
            raise waiter.ended from error
        finally:
            self._room.leave(waiter)
            if request is not None:
                self._batcher.release(request)
                if not self._batcher.idle:
                    # the memory may be what a request that goes again waits for
                    self._links.push_soon()

    def _token_limit(self, layer: LayerInfo) -> int:
        """What fits a batch, the queue and, twice, the arena; a request beyond it could never be served."""
        limits = self._batcher.waiting.limits
        room_bytes = min(self._arena.size_bytes, limits.area_bytes) // 2 // ALIGNMENT_BYTES * ALIGNMENT_BYTES
        return min(self._links.max_batch_tokens, limits.tokens, room_bytes // protocol.row_bytes(layer))

    def _reserve(
        self, layer: LayerInfo, parsed: Parsed, waiter: Waiter, name: Called, span: Span | None, *, upload: bool
    ) -> Request:
        try:
            return self._batcher.reserve(
                layer.name, parsed.tokens, parsed.size_bytes, waiter.deliver, deadline=waiter.deadline, upload=upload,
                request_id=name.id, span=span,
            )  # fmt: skip
        except QueueFull as error:
            raise Refusal(503, str(error), reason=error.reason) from error

    async def _fill(self, request: Request, parsed: Parsed, body: Body, rest: memoryview) -> None:
        """The input's bytes into the arena, as they come: the one copy on their way to the worker."""
        area = self._arena.area(request.input_offset, request.size_bytes)
        if parsed.data is not None:
            area[:] = parsed.data
            return
        filled, piece = 0, rest
        while True:
            end = filled + len(piece)
            if end > len(area):
                raise Refusal(400, f"{end} bytes or more follow the JSON; binary_data_size says {len(area)}")
            area[filled:end] = piece
            filled = end
            piece = memoryview(await body.next())
            if not piece:
                break
        if filled != len(area):
            raise Refusal(400, f"{filled} bytes follow the JSON; binary_data_size says {len(area)}")

    def _answer(
        self, parsed: Parsed, layer: LayerInfo, output: memoryview | bytes, served: Served, name: Called
    ) -> Reply:
        headers, body = protocol.encode(parsed, layer, output, served, name.id)
        return Reply(200, headers, body, served.path, parsed.tokens)

    def _refused(self, refusal: Refusal) -> Reply:
        reply = refused(refusal)
        if refusal.reason is not None:
            self._metrics.refused(refusal.reason)
        if refusal.status == 503:
            seconds = retry_after_s(self._batcher.queue_s, self._retry_after_s, self._room.timeout_s)
            reply.headers.append((b"retry-after", b"%d" % seconds))
        return reply


def _served(outcome: Outcome, request: Request) -> Served:
    return Served(outcome.answer.path, outcome.key.worker, outcome.key.generation, request.replayed)
