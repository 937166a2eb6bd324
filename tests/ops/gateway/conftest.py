"""A gateway with real sockets on both sides: HTTP clients here, a watchdog and workers there.

The workers and the watchdog of these tests are threads that speak the real messages over real Unix sockets and the real
arena; a worker computes y = 2 x and does nothing that it was not told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from fdmoe_ops.arena import Arena
from fdmoe_ops.gateway.address import bind
from fdmoe_ops.gateway.server import Gateway, GatewayPlan
from fdmoe_ops.gateway.tensors import DTYPES
from fdmoe_ops.settings import GatewaySettings, LogFormat, LogSettings, Settings, write
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.messages import Answer, Batch, Fence, Gone, Hello, LayerInfo, Route, WorkerReady
from fdmoe_watchdog.page import Line, Page

DEADLINE_S = 10.0
ARENA_BYTES = 1 << 20
MAX_BATCH_TOKENS = 64
LAYERS = (
    LayerInfo("demo/layers.0", 8, "FP32", 4, 2),
    LayerInfo("demo/layers.1", 8, "BF16", 4, 2),
    LayerInfo("demo/layers.2", 8, "FP16", 4, 2),
)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that no file descriptor announces."""
    deadline, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true in {DEADLINE_S:g} s"
        pause.wait(0.001)


def receive(channel: Channel, kind: type, stop: threading.Event) -> Any:
    """The next message of this kind; None when the connection closes or the test ends."""
    while not stop.is_set():
        try:
            message = channel.receive()
        except (ChannelClosed, OSError):
            return None
        if isinstance(message, kind):
            return message
        if message is None:
            stop.wait(0.0005)
    return None


class Worker:
    """One generation. `automatic`: answers every batch at once; else batches come out of `next_batch`."""

    def __init__(self, tree: Tree, name: str, generation: int, *, automatic: bool, path: str = "fused") -> None:
        self.name, self.generation, self.path = name, generation, path
        self.arena, self.layers = tree.worker_arena, {layer.name: layer for layer in LAYERS}
        stem = tree.run_dir / f"worker-{name}-g{generation}"
        self.page = Page.create(stem.with_suffix(".page"), generation=generation, slots=1)
        self.listener = Listener(stem.with_suffix(".sock"))
        self.hello: Hello | None = None
        self.batches: list[Batch] = []
        self._waiting: queue.Queue[Batch] = queue.Queue()
        self._automatic, self._stop = automatic, threading.Event()
        self.channel: Channel | None = None
        self.error = ""
        self._thread = threading.Thread(target=self._run, name=f"worker-{name}{generation}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set() and (channel := self.listener.accept()) is None:
            self._stop.wait(0.001)
        if self._stop.is_set():
            return
        self.hello = receive(channel, Hello, self._stop)
        channel.send(WorkerReady(self.generation, LAYERS, MAX_BATCH_TOKENS))
        self.channel = channel
        while (batch := receive(channel, Batch, self._stop)) is not None:
            self.batches.append(batch)
            if self._automatic:
                self.answer(batch)
            else:
                self._waiting.put(batch)

    def next_batch(self) -> Batch:
        return self._waiting.get(timeout=DEADLINE_S)

    def compute(self, batch: Batch, factor: float = 2.0) -> None:
        """Write factor * x into the output areas."""
        layer = self.layers[batch.layer]
        dtype = DTYPES[layer.dtype]
        for segment in batch.segments:
            size = segment.tokens * layer.hidden_size * dtype.itemsize
            x = np.frombuffer(self.arena.area(segment.input_offset, size), dtype)
            y = np.frombuffer(self.arena.area(segment.output_offset, size), dtype)
            with np.errstate(invalid="ignore"):
                y[:] = x * dtype.type(factor)

    def answer(self, batch: Batch, factor: float = 2.0) -> None:
        self.compute(batch, factor)
        assert self.channel is not None
        self.channel.send(Answer(self.generation, batch.batch, self.path, 1000, self.error))  # type: ignore[arg-type]

    @property
    def submitted(self) -> int:
        return self.page.read(Line.GATEWAY, 0)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        if self.channel is not None:
            self.channel.close()
        self.listener.close()


@dataclass
class Tree:
    """The watchdog's side of a gateway in this process: starts workers, routes, fences."""

    run_dir: Path
    plan: GatewayPlan | None = None
    arena_bytes: int = ARENA_BYTES
    workers: list[Worker] = field(default_factory=list)

    def prepare(self) -> None:
        """What the watchdog makes before it starts a gateway."""
        (self.run_dir / "arena").write_bytes(bytes(self.arena_bytes))
        self.worker_arena = Arena.open(self.run_dir / "arena")
        self._listener = Listener(self.run_dir / "watchdog.sock")
        self._stop = threading.Event()

    def start(self) -> None:
        """A gateway in a thread of this process."""
        self.prepare()
        listening = bind("127.0.0.1", 0)
        started = threading.Event()

        async def serve() -> None:
            assert self.plan is not None
            self.gateway = Gateway(self.plan)
            started.set()
            await self.gateway.serve(listening)

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())

        self._thread = threading.Thread(target=run, name="gateway", daemon=True)
        self._thread.start()
        assert started.wait(DEADLINE_S)
        self.meet()

    def meet(self) -> None:
        """The gateway's first two messages."""
        until(self._accepted, "the gateway's connection")
        self.hello = receive(self.control, Hello, self._stop)
        self.listening = receive(self.control, messages.Listening, self._stop)
        self.port = self.listening.port

    def _accepted(self) -> bool:
        channel = self._listener.accept()
        if channel is not None:
            self.control = channel
        return channel is not None

    def stop(self) -> None:
        self.control.close()
        self._thread.join(DEADLINE_S)
        self.clean_up()
        assert not self._thread.is_alive(), "the gateway ends with the watchdog's connection"

    def clean_up(self) -> None:
        for worker in self.workers:
            worker.stop()
        self._listener.close()

    def worker(self, name: str, generation: int, *, automatic: bool = False, path: str = "fused") -> Worker:
        worker = Worker(self, name, generation, automatic=automatic, path=path)
        self.workers.append(worker)
        return worker

    def route(self, worker: Worker, device: str = "cpu") -> None:
        """Returns when the gateway has it for its active worker."""
        self.control.send(
            Route(worker.name, worker.generation, str(worker.listener.path), str(worker.page.path), device)
        )
        until(lambda: self.get("/readyz")[0] == 200, "/readyz")

    def fence(self, worker: Worker) -> None:
        self.control.send(Fence(worker.name, worker.generation))

    def gone(self, worker: Worker) -> None:
        self.control.send(Gone(worker.name, worker.generation))

    def heard(self, kind: type) -> Any:
        """The gateway's next message of this kind."""
        return receive(self.control, kind, self._stop)

    # ---- clients

    @property
    def free_bytes(self) -> int:
        return self.gateway.allocator.free_bytes

    def client(self) -> triton.InferenceServerClient:
        return triton.InferenceServerClient(f"127.0.0.1:{self.port}", network_timeout=DEADLINE_S)

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        found = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        connection.close()
        return found

    def request_later(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Later:
        return Later(lambda: self.request(method, path, body, headers))

    def wait_for_queue(self, depth: int) -> None:
        until(lambda: self.metric("fdmoe_queue_depth") == depth, f"a queue of {depth}")

    def get(self, path: str) -> tuple[int, bytes]:
        status, _, body = self.request("GET", path)
        return status, body

    def post(self, document: object, layer: str = LAYERS[0].name) -> tuple[int, Any]:
        status, _, body = self.request("POST", f"/v2/models/{layer}/infer", json.dumps(document))
        return status, json.loads(body)

    def ask(self, x: Any, layer: LayerInfo = LAYERS[0], **options: Any) -> triton.InferResult:
        tensor = triton.InferInput("hidden_states", list(x.shape), layer.dtype)
        tensor.set_data_from_numpy(x)
        with self.client() as client:
            return client.infer(layer.name, [tensor], **options)

    def ask_later(self, x: Any, layer: LayerInfo = LAYERS[0], **options: Any) -> Later:
        return Later(lambda: self.ask(x, layer, **options))

    def scraped(self, name: str, **labels: str) -> float:
        """A metric as Prometheus reads it; 0 where there is none of these labels."""
        text = self.get("/metrics")[1].decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return next((sample.value for sample in samples if (sample.name, sample.labels) == (name, labels)), 0.0)

    def metric(self, name: str, **labels: str) -> float:
        """The same of a gateway in this process."""
        return self.gateway.metrics.registry.get_sample_value(name, labels) or 0.0


class Later:
    """A request that is under way in a thread."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        self._found: queue.Queue[Any] = queue.Queue()

        def run() -> None:
            try:
                self._found.put(ask())
            except triton.InferenceServerException as error:
                self._found.put(error)

        threading.Thread(target=run, name="client", daemon=True).start()

    def result(self) -> Any:
        return self._found.get(timeout=DEADLINE_S)


@contextlib.contextmanager
def running(**changes: Any) -> Iterator[Tree]:
    """A gateway; the arguments are the plan's values that are to be other than usual."""
    with tempfile.TemporaryDirectory(prefix="fdmoe-test-", dir="/dev/shm") as name:
        values: dict[str, Any] = {
            "run_dir": Path(name),
            "max_queue_tokens": 128,
            "max_queue_requests": 16,
            "max_queue_bytes": ARENA_BYTES,
            "request_timeout_s": DEADLINE_S,
            "upload_timeout_s": DEADLINE_S,
            "retry_after_s": 3,
            "drain_timeout_s": DEADLINE_S,
            "route_deadline_s": DEADLINE_S,
            "version": "1.2.3",
            "traces_url": None,
            "traces_sample_ratio": 1.0,
            **changes,
        }
        tree = Tree(Path(name), GatewayPlan(**values))
        tree.start()
        try:
            yield tree
        finally:
            tree.stop()


@pytest.fixture(autouse=True)
def _no_trace_is_sent_in_another_test() -> Iterator[None]:
    """A gateway does not wait for a collector that is gone; its line about that would be in whatever is read then."""
    yield
    for thread in threading.enumerate():
        if thread.name == "traces-close":
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def running_tree() -> Callable[..., contextlib.AbstractContextManager[Tree]]:
    return running


@pytest.fixture
def tree() -> Iterator[Tree]:
    """A gateway without any worker."""
    with running() as tree:
        yield tree


@pytest.fixture(scope="module")
def serving() -> Iterator[Tree]:
    """A gateway with one worker that answers at once, shared by a module's tests."""
    with running() as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        yield tree


@dataclass
class Process(Tree):
    """The same with the gateway in a process of its own, started as the watchdog starts it."""

    options: dict[str, Any] = field(default_factory=dict)

    def start(self) -> None:
        self.prepare()
        self.process = self.run(0)
        self.meet()

    def run(self, port: int) -> subprocess.Popen[str]:
        gateway = GatewaySettings(port=port, **{"max_queue_bytes": self.arena_bytes, **self.options})
        settings = Settings(run_dir=self.run_dir, gateway=gateway, log=LogSettings(format=LogFormat.JSON))
        file = self.run_dir / f"settings-{port}.json"
        write(settings, file)
        command = [sys.executable, "-P", "-m", "fdmoe_ops.gateway", "--settings", str(file)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path[1:]),
            "FDMOE_WATCHDOG_PID": str(os.getpid()),
        }
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def end(self) -> str:
        """Kill it; what it has said on standard error."""
        self.process.kill()
        return self.process.communicate(timeout=DEADLINE_S)[1]

    def stop(self) -> None:
        self.end()
        self.clean_up()


@contextlib.contextmanager
def running_in_a_process(arena_bytes: int = ARENA_BYTES, **options: Any) -> Iterator[Process]:
    """`options` of the gateway's branch of the settings that are to be other than usual."""
    with tempfile.TemporaryDirectory(prefix="fdmoe-test-", dir="/dev/shm") as name:
        tree = Process(Path(name), arena_bytes=arena_bytes, options=options)
        tree.start()
        try:
            yield tree
        finally:
            tree.stop()


@pytest.fixture(scope="session")
def running_process() -> Callable[..., contextlib.AbstractContextManager[Process]]:
    return running_in_a_process


@pytest.fixture
def process() -> Iterator[Process]:
    with running_in_a_process() as tree:
        yield tree


@pytest.fixture
def layers() -> tuple[LayerInfo, ...]:
    return LAYERS


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool], str], None]:
    return until
