"""`python -m fdmoe_ops.gateway --settings FILE`: the gateway's process, a child of the watchdog. With `--spare` it
waits until it is wanted."""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import signal
import socket
import sys
from pathlib import Path

import structlog
import uvloop

from fdmoe_ops import log, spare
from fdmoe_ops import settings as tree
from fdmoe_ops.gateway.address import bind
from fdmoe_ops.gateway.server import Gateway, GatewayPlan
from fdmoe_ops.version import version
from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.child import die_with_parent

EXIT_FAILED = 1


def main(arguments: list[str] | None = None) -> int:
    die_with_parent()
    # a connection is a file descriptor, and the usual soft limit of 1024 is from another time
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    parser = argparse.ArgumentParser(prog="python -m fdmoe_ops.gateway", description=__doc__)
    parser.add_argument("--settings", type=Path, required=True)
    spare.add_option(parser)
    options = parser.parse_args(arguments)
    if options.spare is not None and spare.wait(options.spare) is None:
        return 0
    settings = tree.read(options.settings)
    log.configure(settings.log, "gateway")
    logger = structlog.get_logger("fdmoe.gateway")
    assert settings.run_dir is not None, "a resolved tree has a run_dir"
    gateway = settings.gateway
    assert gateway.max_queue_bytes is not None, "a resolved tree has max_queue_bytes"
    plan = GatewayPlan(
        run_dir=settings.run_dir,
        max_queue_tokens=gateway.max_queue_tokens,
        max_queue_requests=gateway.max_queue_requests,
        max_queue_bytes=gateway.max_queue_bytes,
        request_timeout_s=gateway.request_timeout_s,
        upload_timeout_s=gateway.upload_timeout_s,
        retry_after_s=gateway.retry_after_s,
        drain_timeout_s=gateway.drain_timeout_s,
        route_deadline_s=settings.recovery.route_deadline_s,
        version=version(),
        traces_url=settings.traces.url,
        traces_sample_ratio=settings.traces.sample_ratio,
    )
    try:
        listening = bind(gateway.host, gateway.port)
    except OSError as error:
        logger.error("no_address", host=gateway.host, port=gateway.port, reason=str(error))
        return EXIT_FAILED
    try:
        uvloop.run(_serve(plan, listening))
    except (ChannelClosed, ConnectionRefusedError, FileNotFoundError) as error:
        logger.error("no_watchdog", reason=str(error))
        return EXIT_FAILED
    return 0


async def _serve(plan: GatewayPlan, listening: socket.socket) -> None:
    gateway = Gateway(plan)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, gateway.drain)
    # what is here now stays: without it, a full collection walks all modules in the middle of some request
    gc.collect()
    gc.freeze()
    await gateway.serve(listening)


if __name__ == "__main__":
    sys.exit(main())
