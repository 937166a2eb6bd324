"""The gateway put together: one process, one thread, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import uvicorn

from fdmoe_ops.arena import Allocator, Arena
from fdmoe_ops.gateway import app
from fdmoe_ops.gateway.admission import Limits
from fdmoe_ops.gateway.batcher import Batcher
from fdmoe_ops.gateway.connection import Connection
from fdmoe_ops.gateway.infer import Infer
from fdmoe_ops.gateway.link import Links
from fdmoe_ops.gateway.metrics import Metrics
from fdmoe_ops.gateway.waiting import WaitingRoom
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel

if TYPE_CHECKING:
    from fdmoe_ops.gateway.traces import Traces

# longer than load balancers and clients keep an idle connection, so that they are the ones to close it
_KEEP_ALIVE_S = 75
# for answers that are on their way when there is no more time
_FLUSH_S = 1.0


@dataclass(frozen=True)
class GatewayPlan:
    """What the gateway is told, in plain values; the settings tree describes them."""

    run_dir: Path
    max_queue_tokens: int
    max_queue_requests: int
    max_queue_bytes: int
    request_timeout_s: float
    upload_timeout_s: float
    retry_after_s: int
    drain_timeout_s: float
    route_deadline_s: float
    version: str
    traces_url: str | None
    traces_sample_ratio: float


def _traces(plan: GatewayPlan) -> Traces | None:
    """Imported only where they are asked for: OpenTelemetry is an extra, and takes a third of a second to import."""
    if plan.traces_url is None:
        return None
    from fdmoe_ops.gateway.export import Export
    from fdmoe_ops.gateway.traces import Traces

    return Traces(Export(plan.traces_url, plan.version), plan.traces_sample_ratio)


class _Server(uvicorn.Server):
    """Signals are not its own to handle: the gateway drains before its server ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Make it inside a running event loop; `serve` returns when it has been drained or the watchdog leaves."""

    def __init__(self, plan: GatewayPlan) -> None:
        self.arena = Arena.open(plan.run_dir / "arena")
        self.allocator = Allocator(self.arena.size_bytes)
        limits = Limits(plan.max_queue_requests, plan.max_queue_tokens, plan.max_queue_bytes)
        self._batcher = Batcher(self.allocator, limits)
        self.metrics = Metrics(
            lambda: self._batcher.queue_depth, lambda: self.allocator.size_bytes - self.allocator.free_bytes
        )
        self._room = WaitingRoom(plan.request_timeout_s, plan.upload_timeout_s)
        self._drain_timeout_s = plan.drain_timeout_s
        self._draining: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("fdmoe.gateway")
        hello = messages.Hello(messages.PROTOCOL, "gateway", "gateway", 0, os.getpid())
        self._control = Channel.connect(plan.run_dir / "watchdog.sock", hello)
        self._traces = _traces(plan)
        self._links = Links(
            self._batcher, self.metrics, self._traces, self._control, plan.route_deadline_s, self._end
        )  # fmt: skip
        self._infer = Infer(
            arena=self.arena,
            batcher=self._batcher,
            links=self._links,
            room=self._room,
            metrics=self.metrics,
            traces=self._traces,
            retry_after_s=plan.retry_after_s,
        )
        connection = functools.partial(Connection, plan.upload_timeout_s, self.metrics.refused)
        self._server = _Server(
            uvicorn.Config(
                app.build(self._infer, self._links, self.metrics, plan.version),
                http=connection,  # type: ignore[arg-type]  # a class, or what makes its objects
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )

    async def serve(self, listening: socket.socket) -> None:
        """Raises ChannelClosed when the watchdog is not there to be told the address."""
        host, port = listening.getsockname()[:2]
        self._control.send(messages.Listening(host, port))
        try:
            await self._server.serve(sockets=[listening])
        finally:
            self._links.close()
            if self._traces is not None:
                self._traces.close(_FLUSH_S)
            # a request that was cut off may hold a view of the arena, which then goes with the process
            with contextlib.suppress(BufferError):
                self.arena.close()

    def drain(self) -> None:
        """Finish what has come, refuse what comes, and return from `serve`. The second call does not wait."""
        if self._draining is None:
            self._log.info(
                "drain", deadline_s=self._drain_timeout_s, requests_in_flight=self.metrics.requests_in_flight
            )
            self._infer.draining = True
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        else:
            self._end()

    async def _drain(self) -> None:
        """Workers' links stay, so that what one of them fails to answer goes to the next, as always."""
        deadline = time.monotonic() + self._drain_timeout_s
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                await self._room.emptied()
        except TimeoutError:
            self._log.warning("drain_deadline", requests_in_flight=self.metrics.requests_in_flight)
            self._end()
        else:
            self._stop(max(deadline - time.monotonic(), _FLUSH_S))

    def _end(self) -> None:
        """Nobody is kept waiting. Without the watchdog no worker would ever be routed to again."""
        self._infer.draining = True
        self._room.close("the service is stopping")
        self._stop(_FLUSH_S)

    def _stop(self, flush_s: float) -> None:
        """No more connections; those that are still being written to have so long. The first call counts."""
        if self._server.should_exit:
            return
        self._server.config.timeout_graceful_shutdown = flush_s  # type: ignore[assignment]  # whole seconds, it says
        self._server.should_exit = True
