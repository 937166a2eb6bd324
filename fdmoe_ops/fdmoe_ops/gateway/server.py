"""The gateway put together: one process, one thread, one event loop."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from fdmoe_ops.arena import Allocator, Arena
from fdmoe_ops.gateway import app
from fdmoe_ops.gateway.batcher import Batcher
from fdmoe_ops.gateway.infer import Infer
from fdmoe_ops.gateway.link import Links
from fdmoe_ops.gateway.metrics import Metrics
from fdmoe_ops.gateway.refusal import Refusal
from fdmoe_ops.gateway.waiting import WaitingRoom
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel

# longer than load balancers and clients keep an idle connection, so that they are the ones to close it
_KEEP_ALIVE_S = 75
# the watchdog waits 10 s for the gateway to end
_FINISH_S = 8


@dataclass(frozen=True)
class GatewayPlan:
    """What the gateway is told, in plain values; the settings tree describes them."""

    run_dir: Path
    max_queue_tokens: int
    max_queue_requests: int
    request_timeout_s: float
    retry_after_s: int
    version: str


class Gateway:
    """Make it inside a running event loop; `serve` returns when it is stopped or the watchdog leaves."""

    def __init__(self, plan: GatewayPlan) -> None:
        self.arena = Arena.open(plan.run_dir / "arena")
        self.allocator = Allocator(self.arena.size_bytes)
        self._batcher = Batcher(self.allocator, plan.max_queue_requests, plan.max_queue_tokens)
        self.metrics = Metrics(lambda: self._batcher.queue_depth)
        self._room = WaitingRoom(plan.request_timeout_s)
        hello = messages.Hello(messages.PROTOCOL, "gateway", "gateway", 0, os.getpid())
        self._control = Channel.connect(plan.run_dir / "watchdog.sock", hello)
        self._links = Links(self._batcher, self.metrics, self._control, self._end)
        infer = Infer(
            arena=self.arena,
            batcher=self._batcher,
            links=self._links,
            room=self._room,
            metrics=self.metrics,
            retry_after_s=plan.retry_after_s,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app.build(infer, self._links, self.metrics, plan.version),
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_FINISH_S,
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
            # a request that was cut off may hold a view of the arena, which then goes with the process
            with contextlib.suppress(BufferError):
                self.arena.close()

    def stop(self) -> None:
        """Take no more connections, finish what is in flight, and return from `serve`."""
        self._server.should_exit = True

    def _end(self) -> None:
        """Without the watchdog no worker would ever be routed to again: nobody is kept waiting."""
        self._room.close(Refusal(503, "the service is stopping"))
        self.stop()
