"""`fdmoe serve` in a process of its own, on free ports: for game days, benchmarks and end-to-end tests."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fdmoe_ops.client import WatchdogClient, WatchdogUnreachable
from fdmoe_watchdog.proc import StatFile


class Tree:
    """`fdmoe serve` with its own run and flight directory. `output` is what it printed."""

    def __init__(
        self, directory: Path, *flags: str, run_dir: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.gateway_port, self.watchdog_port = free_port(), free_port()
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="fdmoe-tree-", dir="/dev/shm"))
        self.flight_dir = directory / "flights"
        self.output = directory / "serve.log"
        self._command = (
            sys.executable, "-P", "-m", "fdmoe_ops.cli", "serve",
            f"--gateway-port={self.gateway_port}", f"--watchdog-port={self.watchdog_port}",
            f"--run-dir={self.run_dir}", f"--flight-dir={self.flight_dir}", *flags,
        )  # fmt: skip
        self._environment = {**os.environ, **(environment or {})}
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it; once more after it has ended: with the same directories and on the same ports."""
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self._command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment
            )
        return self.process

    @property
    def gateway_address(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"

    def get(self, path: str, *, watchdog: bool = False) -> tuple[int, bytes]:
        """Status and body of a GET at the gateway, or at the watchdog."""
        port = self.watchdog_port if watchdog else self.gateway_port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def status(self) -> dict[str, Any]:
        with WatchdogClient(self.run_dir) as client:
            return client.status()

    def active(self) -> str:
        """The active worker of the first device."""
        active: str = self.status()["devices"][0]["active"]
        return active

    def arm(self, fault: str) -> None:
        with WatchdogClient(self.run_dir) as client:
            reply = client.arm(fault)
        assert reply.ok, reply.reason

    def wait_until(self, what: str, condition: Callable[[], Any], timeout_s: float = 120.0) -> Any:
        """The condition's first true value. Raises AssertionError, with the tree's log, when it does not come."""
        deadline = time.monotonic() + timeout_s
        pause = 0.01
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the tree ended while {what} was awaited:\n{self.log_tail()}"
            with contextlib.suppress(OSError, WatchdogUnreachable, http.client.HTTPException):
                if value := condition():
                    return value
            time.sleep(pause)
        raise AssertionError(f"{what} did not come in {timeout_s:g} s; the tree said:\n{self.log_tail()}")

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """All workers are up and the gateway serves."""

        def ready() -> bool:
            states = {worker["state"] for worker in self.status()["workers"]}
            return self.get("/readyz")[0] == 200 and states == {"ready"}

        self.wait_until("readiness", ready, timeout_s)

    def log_tail(self) -> str:
        return self.output.read_text(errors="replace")[-6000:]

    def processes(self) -> list[int]:
        """Process ids of the tree: the watchdog and its children."""
        status = self.status()
        holders = (device["holder"] for device in status["devices"])
        children = (status["gateway"], *holders, *status["workers"])
        spares = (spare["pid"] for spare in spares_of(status) if spare["pid"])
        return [self.process.pid, *(child["pid"] for child in children), *spares]

    def has_its_spares(self) -> bool:
        """All processes that wait to become workers have imported everything."""
        return all(spare["state"] == "ready" for spare in spares_of(self.status()))

    def stop(self, number: signal.Signals = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """End it as Ctrl-C does; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)

    def end(self) -> None:
        """Stop it, and kill it if it does not stop."""
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running_tree(*flags: str, environment: dict[str, str] | None = None) -> Iterator[Tree]:
    """A tree that is ready, and that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fdmoe-tree-") as directory:
        tree = Tree(Path(directory), *flags, environment=environment)
        try:
            tree.wait_until_ready()
            yield tree
        finally:
            tree.end()


def spares_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    """The processes that wait to become workers, or the gateway."""
    return [spare for place in (*status["devices"], status["gateway"]) for spare in place["spares"]]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    return StatFile(pid).read().state not in ("", "Z")


def read_events(tree: Tree) -> list[dict[str, Any]]:
    """The watchdog's last events, oldest first."""
    events: list[dict[str, Any]] = tree.status()["events"]
    return events
