"""One tree on two devices: a holder and a pair of workers on each. Without GPUs they are two names of the CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton_http

from fdmoe_kernels import MoELayer
from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, read_events, running_tree
from fdmoe_ops.checkpoint import Checkpoint


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def names(request: pytest.FixtureRequest) -> tuple[str, str]:
    kind: str = request.param
    if kind == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    return f"{kind}:0", f"{kind}:1"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of GPUs that are well, for devices without an NVML."""
    path = tmp_path_factory.mktemp("recording") / "gpus.json"
    _record(path)
    return path


def _record(path: Path, *xids: dict[str, object]) -> None:
    figures = {"uuid": "recorded-x", "name": "X"}
    step = {"after_s": 0.0, "state": "made up", "origin": "chosen", "figures": figures}
    document = {"format": 1, "origin": "chosen", "length_s": 3600.0, "steps": [step], "xids": xids}
    path.write_text(json.dumps(document))


@pytest.fixture(scope="module")
def two_devices(demo: Path, names: tuple[str, str], recording: Path) -> Iterator[Tree]:
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--model-layers=1", f"--devices={','.join(names)}",
        "--worker-max-batch-tokens=256", "--enable-chaos",
        "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2",
    )  # fmt: skip
    played = (f"--watchdog-gpu-recording={recording}",) if names[0] == "cpu:0" else ()
    with running_tree(*flags, *played) as tree:
        yield tree


def test_each_device_has_a_holder_and_a_pair_of_its_own(two_devices: Tree, names: tuple[str, str]) -> None:
    first, second = names
    status = two_devices.status()
    found = [(device["name"], device["holder"]["name"], device["holder"]["state"]) for device in status["devices"]]
    assert found == [(first, "weights0", "ready"), (second, "weights1", "ready")]
    assert [(worker["name"], worker["device"], worker["state"]) for worker in status["workers"]] == [
        ("a0", first, "ready"),
        ("b0", first, "ready"),
        ("a1", second, "ready"),
        ("b1", second, "ready"),
    ]


def test_children_are_told_their_device_and_its_weights(two_devices: Tree, names: tuple[str, str]) -> None:
    first, second = names
    if first == "cuda:0":
        pytest.skip("on GPUs they are spare processes, whose command line is from before")
    told = {}
    for worker in two_devices.status()["workers"]:
        words = Path(f"/proc/{worker['pid']}/cmdline").read_text().split("\0")
        device, weights = (words[words.index(flag) + 1] for flag in ("--device", "--weights"))
        told[worker["name"]] = (device, re.sub(r"-g[0-9]+\.json$", "", Path(weights).name))
    assert told == {
        "a0": (first, "weights0"),
        "b0": (first, "weights0"),
        "a1": (second, "weights1"),
        "b1": (second, "weights1"),
    }


def test_the_answers_are_right(two_devices: Tree, blocks: list[torch.nn.Module]) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    tensor = triton_http.InferInput("hidden_states", [5, 64], "FP32")
    tensor.set_data_from_numpy(x.numpy())
    result = triton_http.InferenceServerClient(two_devices.gateway_address).infer("demo/layers.1", [tensor])
    with torch.no_grad():
        expected = blocks[1](x[None])[0]
    assert np.allclose(result.as_numpy("output"), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_devices_are_announced(two_devices: Tree, names: tuple[str, str]) -> None:
    two_devices.wait_until("the announcement", lambda: "A first request" in two_devices.output.read_text())
    assert (
        f"gateway   http://{two_devices.gateway_address}   (demo on {', '.join(names)})\n"
        in two_devices.output.read_text()
    )


def _both_whole(tree: Tree) -> bool:
    status = tree.status()
    paths = [device["path"] for device in status["devices"] if device["active"] is not None]
    return paths == ["fused", "fused"] and all(worker["state"] == "ready" for worker in status["workers"])


def _batches(tree: Tree) -> dict[str, int]:
    """How many batches each device's workers have served since their start."""
    served: dict[str, int] = {}
    for worker in tree.status()["workers"]:
        served[worker["device"]] = served.get(worker["device"], 0) + sum(worker["batches"].values())
    return served


def test_two_devices_share_the_load_and_one_carries_on_alone(two_devices: Tree, demo: Path) -> None:
    layer: MoELayer = Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32)
    pool = Pool.of("demo/layers.1", layer, 40)
    tree = two_devices
    before = _batches(tree)
    with Load(tree.gateway_address, pool, clients=4) as load:
        tree.wait_until("batches on both", lambda: all(n > before[name] + 2 for name, n in _batches(tree).items()))
        tree.arm("kill-workers")
        count = len(load.sent)
        tree.wait_until("answers of the other", lambda: len(load.sent) > count + 4)
        tree.wait_until("both devices", lambda: _both_whole(tree))
    gone = {event["worker"] for event in read_events(tree) if event["event"] == "worker_gone"}
    assert gone == {"a0", "b0"}
    assert [sent for sent in load.sent if sent.failed or sent.wrong or sent.retries] == []


def test_a_device_that_is_out_is_left_out_and_the_other_serves(
    two_devices: Tree, names: tuple[str, str], recording: Path, demo: Path
) -> None:
    if names[0] == "cuda:0":
        pytest.skip("no GPU is asked to fall off its bus")
    layer: MoELayer = Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32)
    tree = two_devices
    tree.wait_until("both devices", lambda: _both_whole(tree))
    with Load(tree.gateway_address, Pool.of("demo/layers.1", layer, 40), clients=4) as load:
        # the probe that takes the other's place reads of a GPU that has fallen off its bus
        _record(recording, {"after_s": 0.5, "xid": 79, "device": "1"})
        tree.arm("kill-probe")

        def out() -> list[dict[str, object]]:
            return [event for event in read_events(tree) if event["event"] == "device_out"]

        (event,) = tree.wait_until("the device to be out", out)
        count = len(load.sent)
        tree.wait_until("answers of the other", lambda: len(load.sent) > count + 8)
    assert (event["device"], event["node_action"]) == ("cpu:1", "drain_node")
    assert "79" in str(event["reason"])
    assert [sent for sent in load.sent if sent.failed or sent.wrong or sent.retries] == []
    assert tree.get("/readyz")[0] == 200
    devices = {device["name"]: device["active"] for device in tree.status()["devices"]}
    assert devices["cpu:0"] is not None
    assert devices["cpu:1"] is None
    # neither its holder nor its workers are started again
    left = {worker["name"]: worker["state"] for worker in tree.status()["workers"] if worker["device"] == "cpu:1"}
    assert set(left.values()) <= {"absent"}, left
    assert tree.process.poll() is None
