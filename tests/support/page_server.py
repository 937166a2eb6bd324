"""The watchdog's HTTP server over views that a test makes up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace

from prometheus_client import CollectorRegistry

from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.http import HttpServer
from fdmoe_watchdog.status_page.live import LiveView


class PageServer:
    """Set `live` to what the page is to show. While `turning`, the view is as fresh as a turning loop would make it."""

    def __init__(self, live: LiveView) -> None:
        self.live = live
        self.turning = True
        self._server = HttpServer(
            "127.0.0.1", 0, Exposition(CollectorRegistry()), lambda: self.live.tree, self._look, lambda: True
        )
        self.url = self._server.url
        self.port = int(self.url.rpartition(":")[2])

    def _look(self) -> LiveView:
        if self.turning:
            self.live = replace(self.live, taken_at=time.monotonic())
        return self.live

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


@contextlib.contextmanager
def serving(live: LiveView) -> Iterator[PageServer]:
    server = PageServer(live)
    server.start()
    try:
        yield server
    finally:
        server.stop()
