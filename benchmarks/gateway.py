"""`python benchmarks/gateway.py`: what the gateway costs at one token a request, against a bare echo.

The gateway is the real process; behind it stands a worker that copies its input to its output at once, in a process of
its own, over the real sockets and the real arena. The echo is the smallest ASGI application under the same uvicorn
(httptools, uvloop) that sends the request's bytes back. The client keeps its connections open, sends the next request
when the answer is there, and asks all servers in turn, round by round; medians over the rounds are reported. With
`--traces RATIO` a second gateway stands beside them that traces that share of its requests, to a collector that takes
all and keeps nothing.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
from rows import describe_machine, reproduce, write_rows

from fdmoe_ops import settings as settings_tree
from fdmoe_ops.arena import Arena
from fdmoe_ops.chaos.tree import free_port
from fdmoe_ops.settings import Settings
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.messages import Answer, Batch, LayerInfo, Route, WorkerReady
from fdmoe_watchdog.page import Page
from fdmoe_watchdog.rundir import RunDirectory

LAYER = "m/layers.0"
_DEADLINE_S = 30.0


def echo_worker(run_dir: Path, hidden_size: int) -> None:
    """A worker in all but the computing: y = x."""
    listener = Listener(run_dir / "worker.sock")
    arena = Arena.open(run_dir / "arena")
    print("listening", flush=True)
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.select()
        channel = listener.accept()
        assert channel is not None
        selector.register(channel, selectors.EVENT_READ)
        layer = LayerInfo(LAYER, hidden_size, "BF16", 8, 2)
        channel.send(WorkerReady(1, (layer,), 64))
        while True:
            selector.select()
            try:
                message = channel.receive()
            except ChannelClosed:
                return
            if not isinstance(message, Batch):
                continue
            for segment in message.segments:
                size = segment.tokens * hidden_size * 2
                arena.area(segment.output_offset, size)[:] = arena.area(segment.input_offset, size)
            channel.send(Answer(1, message.batch, "fused", 0))


@contextmanager
def gateway(directory: Path, hidden_size: int, traces: dict[str, object]) -> Iterator[int]:
    """The real gateway with an echo worker; yields its port. This process plays the watchdog."""
    run_dir, port = Path(tempfile.mkdtemp(prefix="fdmoe-bench-", dir="/dev/shm")), free_port()
    claimed = RunDirectory(run_dir)
    claimed.claim()
    with ExitStack() as stack:
        stack.callback(claimed.release)
        claimed.reserve("arena", 16 * 1024 * 1024)
        settings = Settings.model_validate(
            {
                "run_dir": run_dir, "gateway": {"port": port, "max_queue_bytes": "8MiB"},
                "model": {"path": directory}, "log": {"level": "warning"}, "traces": traces,
            }
        )  # fmt: skip
        settings_tree.write(settings, run_dir / "settings.json")
        control = Listener(run_dir / "watchdog.sock")
        page = Page.create(run_dir / "worker.page", generation=1, slots=1)
        worker = _start(stack, __file__, "--echo-worker", str(run_dir), "--hidden-size", str(hidden_size))
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"listening\n"
        _start(stack, "-P", "-m", "fdmoe_ops.gateway", "--settings", str(run_dir / "settings.json"))
        channel = _accept(control)
        channel.send(Route("a", 1, str(run_dir / "worker.sock"), str(page.path), "cpu"))
        _wait_for_port(port)
        yield port


@contextmanager
def echo(port: int) -> Iterator[int]:
    """The bare server."""
    with ExitStack() as stack:
        _start(stack, __file__, "--echo-server", str(port))
        _wait_for_port(port)
        yield port


def echo_server(port: int) -> None:
    import uvicorn

    async def app(scope: dict[str, object], receive, send) -> None:  # type: ignore[no-untyped-def]
        assert scope["type"] == "http"
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(
        app, host="127.0.0.1", port=port, http="httptools", loop="uvloop", lifespan="off", log_level="warning",
        access_log=False,
    )  # fmt: skip


@contextmanager
def collector(port: int) -> Iterator[str]:
    """Takes spans and forgets them; yields its address."""
    with ExitStack() as stack:
        _start(stack, __file__, "--collector", str(port))
        _wait_for_port(port)
        yield f"http://127.0.0.1:{port}"


def collector_server(port: int) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """It is not what is measured."""

    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


def request_bytes(hidden_size: int) -> bytes:
    """One token in BF16 with the binary tensor extension, as it goes over the wire."""
    size = hidden_size * 2
    tensor = {
        "name": "hidden_states", "shape": [1, hidden_size], "datatype": "BF16",
        "parameters": {"binary_data_size": size},
    }  # fmt: skip
    document = {"inputs": [tensor], "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}
    head = msgspec.json.encode(document)
    body = head + os.urandom(size)
    return (
        f"POST /v2/models/{LAYER}/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\nContent-Type: application/octet-stream\r\n\r\n"
    ).encode() + body


class Client:
    """One kept connection, one request at a time."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._request = request
        self._received = b""

    def send(self) -> None:
        self.socket.sendall(self._request)

    def receive(self) -> bool:
        """Read what is there; whether the answer is complete."""
        self._received += self.socket.recv(65536)
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return False
        assert head.startswith(b"HTTP/1.1 200"), self._received[:500]
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        if len(body) < int(length.partition(b":")[2]):
            return False
        self._received = b""
        return True


def latencies_us(client: Client, count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        client.send()
        while not client.receive():
            pass
        times.append((time.perf_counter() - start) * 1e6)
    return times


def requests_per_second(clients: list[Client], seconds: float) -> float:
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send()
        start, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds:
            for key, _ in selector.select(1.0):
                if key.data.receive():
                    done += 1
                    key.data.send()
        for client in clients:
            while not client.receive():
                pass
    return done / elapsed


def measure(options: argparse.Namespace, directory: Path) -> list[dict[str, object]]:
    request = request_bytes(options.hidden_size)
    with ExitStack() as stack:
        ports = {"gateway": stack.enter_context(gateway(directory, options.hidden_size, {}))}
        if options.traces is not None:
            endpoint = stack.enter_context(collector(free_port()))
            traces: dict[str, object] = {"endpoint": endpoint, "sample_ratio": options.traces}
            name = f"gateway, {options.traces:g} traced"
            ports[name] = stack.enter_context(gateway(directory, options.hidden_size, traces))
        ports["echo"] = stack.enter_context(echo(free_port()))
        single = {name: Client(port, request) for name, port in ports.items()}
        many = {name: [Client(port, request) for _ in range(options.clients)] for name, port in ports.items()}
        for client in single.values():
            latencies_us(client, 200)
        latency: dict[str, list[float]] = {name: [] for name in ports}
        rate: dict[str, list[float]] = {name: [] for name in ports}
        for _ in range(options.rounds):
            for name in ports:
                latency[name] += latencies_us(single[name], 300)
            for name in ports:
                rate[name].append(requests_per_second(many[name], 1.0))
    p50 = {name: statistics.median(times) for name, times in latency.items()}
    p99 = {name: statistics.quantiles(times, n=100)[98] for name, times in latency.items()}
    median_rate = {name: statistics.median(rates) for name, rates in rate.items()}
    return [
        {
            "server": name,
            "request_bytes": len(request),
            "p50_us": round(p50[name], 1),
            "p99_us": round(p99[name], 1),
            "p50_added_us": round(p50[name] - p50["echo"], 1),
            "p50_added_promise_us": 300,
            "clients": options.clients,
            "requests_per_s": round(median_rate[name]),
            "share_of_echo": round(median_rate[name] / median_rate["echo"], 3),
            "share_promise": 0.7,
            **describe_machine(),
            "commit": options.commit,
            "command": reproduce(),
        }
        for name in ports
    ]


def _start(stack: ExitStack, *arguments: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen((sys.executable, *arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)
    return process


def _accept(listener: Listener) -> Channel:
    deadline = time.monotonic() + _DEADLINE_S
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            if selector.select(1.0) and (channel := listener.accept()) is not None:
                return channel
    raise TimeoutError("the gateway did not connect")


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise TimeoutError(f"nobody listens on port {port}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gateway.py", description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--clients", type=int, default=8, help="connections in the measurement of throughput")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    parser.add_argument("--traces", type=float, metavar="RATIO", help="also measure a gateway that traces so many")
    parser.add_argument("--collector", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--echo-server", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--echo-worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo_server is not None:
        echo_server(options.echo_server)
        return 0
    if options.collector is not None:
        collector_server(options.collector)
        return 0
    if options.echo_worker is not None:
        echo_worker(options.echo_worker, options.hidden_size)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        results = measure(options, Path(directory))
    write_rows(results, options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
