"""A real process tree for benchmarks and end-to-end tests: `fdmoe serve` in a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import csv
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

from fdmoe_ops.cli.client import WatchdogClient, WatchdogUnreachable


class Tree:
    """`fdmoe serve` with its own run and flight directory. `output` is what it printed."""

    def __init__(
        self, directory: Path, *flags: str, run_dir: Path | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.gateway_port, self.watchdog_port = free_port(), free_port()
        self.run_dir = run_dir or Path(tempfile.mkdtemp(prefix="fdmoe-tree-", dir="/dev/shm"))
        self.flight_dir = directory / "flights"
        self.output = directory / "serve.log"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                (
                    sys.executable, "-P", "-m", "fdmoe_ops.cli", "serve",
                    f"--gateway-port={self.gateway_port}", f"--watchdog-port={self.watchdog_port}",
                    f"--run-dir={self.run_dir}", f"--flight-dir={self.flight_dir}", *flags,
                ),
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )  # fmt: skip

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
        """Both workers are up and the gateway serves."""

        def ready() -> bool:
            states = [worker["state"] for worker in self.status()["workers"]]
            return self.get("/readyz")[0] == 200 and states == ["ready", "ready"]

        self.wait_until("readiness", ready, timeout_s)

    def log_tail(self) -> str:
        return self.output.read_text(errors="replace")[-6000:]

    def processes(self) -> list[int]:
        """Process ids of the tree: the watchdog and its children."""
        status = self.status()
        holders = (device["holder"] for device in status["devices"])
        children = (status["gateway"], *holders, *status["workers"])
        return [self.process.pid, *(child["pid"] for child in children)]

    def stop(self, number: signal.Signals = signal.SIGINT, timeout_s: float = 60.0) -> int:
        """End it as Ctrl-C does; returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


@contextlib.contextmanager
def running_tree(*flags: str, environment: dict[str, str] | None = None) -> Iterator[Tree]:
    """A tree that is ready, and that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fdmoe-tree-") as directory:
        tree = Tree(Path(directory), *flags, environment=environment)
        try:
            tree.wait_until_ready()
            yield tree
        finally:
            try:
                tree.stop()
            except subprocess.TimeoutExpired:
                tree.process.kill()
                tree.process.wait()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def describe_machine() -> dict[str, str]:
    """What every row of a result says about where it was measured."""
    import platform

    import torch
    import triton

    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU, {os.cpu_count()} cores"
    versions = f"python {platform.python_version()} torch {torch.__version__} triton {triton.__version__}"
    return {"device": device, "versions": versions}


def reproduce() -> str:
    """The command that gave a result, less where it was written and what commit it was told."""
    words, kept = iter(sys.argv[1:]), []
    for word in words:
        name = word.partition("=")[0]
        if name in ("--csv", "--commit"):
            if "=" not in word:
                next(words, None)
            continue
        kept.append(word)
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def write_rows(rows: list[dict[str, object]], path: Path | None) -> None:
    """A result as CSV, to standard output without a path."""
    with path.open("w", newline="") if path else sys.stdout as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def read_events(tree: Tree) -> list[dict[str, Any]]:
    """The watchdog's last events, oldest first."""
    events: list[dict[str, Any]] = tree.status()["events"]
    return events
