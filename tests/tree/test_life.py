"""A tree's birth and end, and its answers in fair weather."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton_http

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, is_running
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_watchdog import stacks

QUICK = ("--model-layers=1", "--model-name=demo")


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_the_client_gets_what_transformers_computes(
    tree: Tree, blocks: list[torch.nn.Module], layer: int, binary: bool
) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(layer))
    tensor = triton_http.InferInput("hidden_states", [5, 64], "FP32")
    tensor.set_data_from_numpy(x.numpy(), binary_data=binary)
    client = triton_http.InferenceServerClient(tree.gateway_address)
    output = triton_http.InferRequestedOutput("output", binary_data=binary)
    result = client.infer(f"demo/layers.{layer}", [tensor], outputs=[output])
    with torch.no_grad():
        expected = blocks[layer](x[None])[0]
    assert np.allclose(result.as_numpy("output"), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert result.get_response()["parameters"]["fdmoe_path"] == "fused"


def test_the_watchdog_has_no_torch_and_files_are_for_their_owner_alone(tree: Tree) -> None:
    libraries = Path(f"/proc/{tree.process.pid}/maps").read_text()
    assert "libtorch" not in libraries
    assert "numpy" not in libraries
    gateway = Path(f"/proc/{tree.status()['gateway']['pid']}/maps").read_text()
    assert "libtorch" not in gateway
    assert tree.run_dir.stat().st_mode & 0o777 == 0o700
    for entry in tree.run_dir.iterdir():
        assert entry.stat().st_mode & 0o777 == 0o600, entry


def test_a_worker_writes_its_stacks_when_it_is_asked(tree: Tree) -> None:
    for worker in tree.status()["workers"]:
        path = tree.run_dir / f"worker-{worker['name']}-g{worker['generation']}.stacks"
        assert stacks.request(worker["pid"], path)
        assert re.search(r'fdmoe_ops/worker/loop\.py", line \d+ in run\n', stacks.collect(path, 20.0))
    assert {worker["state"] for worker in tree.status()["workers"]} == {"ready"}


def test_health_of_both_servers(tree: Tree) -> None:
    for path in ("/startupz", "/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
        assert tree.get(path)[0] == 200, path
    assert tree.get("/livez", watchdog=True) == (200, b"ok\n")
    status, body = tree.get("/status", watchdog=True)
    assert status == 200
    assert json.loads(body)["devices"][0]["active"] in ("a", "b")
    assert tree.get("/nothing", watchdog=True)[0] == 404


def test_a_second_tree_in_the_same_run_directory_is_refused(tree: Tree, demo: Path, tmp_path: Path) -> None:
    second = Tree(tmp_path, f"--model-path={demo}", *QUICK, run_dir=tree.run_dir)
    assert second.process.wait(60) == 2
    assert (
        f"{tree.run_dir} is in use by another tree; stop it, or give this one its own run_dir and ports"
        in second.log_tail()
    )
    assert tree.get("/readyz")[0] == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_tree_leaves_nothing(demo: Path, tmp_path: Path, number: signal.Signals) -> None:
    tree = Tree(tmp_path, f"--model-path={demo}", *QUICK, "--enable-recovery-spare-process")
    tree.wait_until_ready()
    tree.wait_until("the spare processes", tree.has_its_spares)
    starts = [event for event in tree.status()["events"] if event["event"] == "worker_start"]
    assert starts[0]["spare"], "it began to import while the weights were loaded"
    processes = tree.processes()
    assert tree.stop(number) == 0
    assert not any(is_running(pid) for pid in processes)
    assert not tree.run_dir.exists()


def test_a_stopped_tree_finishes_what_is_in_flight(demo: Path, tmp_path: Path) -> None:
    tree = Tree(tmp_path, f"--model-path={demo}", *QUICK)
    tree.wait_until_ready()
    pool = Pool.of("demo/layers.1", Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32), 40)
    with Load(tree.gateway_address, pool, clients=6) as load:
        tree.wait_until("answers", lambda: len(load.sent) >= 6)
        told = time.monotonic()
        assert tree.stop(signal.SIGTERM) == 0
    before = [sent for sent in load.sent if sent.start < told]
    assert any(sent.end > told for sent in before), "somebody was in flight"
    assert [sent for sent in before if sent.failed or sent.retries or sent.wrong] == []
    later = {sent.failed.partition(":")[0] for sent in load.sent if sent.start > told + 0.2}
    assert later <= {"503", "ConnectionRefusedError", "RemoteDisconnected", "ConnectionResetError"}, later


def test_children_end_with_a_killed_watchdog_and_the_next_tree_cleans_up(demo: Path, tmp_path: Path) -> None:
    tree = Tree(tmp_path, f"--model-path={demo}", *QUICK, "--enable-recovery-spare-process")
    tree.wait_until_ready()
    tree.wait_until("the spare processes", tree.has_its_spares)
    processes = tree.processes()
    os.kill(tree.process.pid, signal.SIGKILL)
    tree.process.wait(10)
    _wait_for_end(processes)
    left = {entry.name for entry in tree.run_dir.iterdir()}
    assert "arena" in left, "a killed watchdog cannot clean up"
    again = Tree(tmp_path, f"--model-path={demo}", *QUICK, run_dir=tree.run_dir)
    again.wait_until_ready()
    assert again.stop() == 0
    assert not tree.run_dir.exists()


class _Unread(Tree):
    def log_tail(self) -> str:
        return "nobody reads it"


def test_a_tree_whose_output_nobody_reads_serves_and_recovers(demo: Path, tmp_path: Path) -> None:
    """A pipe that is full, a terminal that is held: every write to it waits for good."""
    fifo = tmp_path / "serve.log"
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(held, bytes(4096))
    tree = _Unread(tmp_path, f"--model-path={demo}", *QUICK, "--enable-chaos")
    try:
        tree.wait_until_ready()
        first = tree.active()
        pool = Pool.of("demo/layers.1", Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32), 8)
        with Load(tree.gateway_address, pool, clients=2) as load:
            tree.arm("stall")
            names = ["stall", "abort_ended", "recovery"]
            tree.wait_until("the recovery", lambda: set(names) <= {e["event"] for e in tree.status()["events"]})
            (killed,) = [worker["pid"] for worker in tree.status()["workers"] if worker["name"] == first]
            os.kill(killed, signal.SIGKILL)
            tree.wait_until("the takeover", lambda: tree.active() not in ("", first))
            tree.wait_until_ready()
            count = len(load.sent)
            tree.wait_until("answers", lambda: len(load.sent) > count)
        assert [sent for sent in load.sent if sent.failed or sent.retries or sent.wrong] == []
        assert tree.stop() == 0
    finally:
        tree.end()
        os.close(held)


@pytest.mark.parametrize("spare", [False, True])
def test_a_frozen_gateway_is_replaced(demo: Path, tmp_path: Path, spare: bool) -> None:
    flags = ("--enable-recovery-spare-process",) if spare else ()
    tree = Tree(tmp_path, f"--model-path={demo}", *QUICK, "--recovery-answer-deadline-s=60", *flags)
    tree.wait_until_ready()
    tree.wait_until("the spare processes", tree.has_its_spares)
    gateway = tree.status()["gateway"]
    frozen = gateway["pid"]
    os.kill(frozen, signal.SIGSTOP)
    tree.wait_until("another gateway", lambda: tree.status()["gateway"]["pid"] not in (0, frozen))
    if spare:
        assert tree.status()["gateway"]["pid"] == gateway["spares"][0]["pid"], "the one that has imported everything"
    tree.wait_until_ready()
    x = np.ones((1, 64), np.float32)
    tensor = triton_http.InferInput("hidden_states", [1, 64], "FP32")
    tensor.set_data_from_numpy(x)
    result = triton_http.InferenceServerClient(tree.gateway_address).infer("demo/layers.1", [tensor])
    assert np.isfinite(result.as_numpy("output")).all()
    events = [event["event"] for event in tree.status()["events"]]
    assert events.count("gateway_frozen") == 1
    assert not is_running(frozen)
    assert tree.stop() == 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--model-layers=0,99", "there is no layer 99"),
        ("--gateway-port={port}", "the gateway cannot listen on 127.0.0.1:{port}"),
    ],
)
def test_what_cannot_be_served_ends_the_tree_with_a_reason(demo: Path, tmp_path: Path, flag: str, message: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tree = Tree(tmp_path, f"--model-path={demo}", flag.format(port=port))
        assert tree.process.wait(60) == 2
        log = tree.log_tail()
        assert message.format(port=port) in log
        assert "Traceback" not in log
        if tree.run_dir.exists():
            tree.run_dir.rmdir()


def _wait_for_end(processes: list[int], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while any(is_running(pid) for pid in processes):
        assert time.monotonic() < deadline, "children outlived their watchdog"
