"""The holder as the watchdog starts it, and a worker over what it holds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from lending import DEADLINE_S, Parent, settings_for

from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.weights.borrower import open_layers
from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.messages import ChildFailed, LayerInfo, SetPath, WeightsReady, WorkerReady
from fdmoe_watchdog.page import Page

CPU = torch.device("cpu")


OPTIONS = ("--device", "cpu", "--name", "a", "--generation", "1")


def test_it_says_what_it_holds_and_ends_with_the_watchdogs_channel(parent: Parent) -> None:
    holder = parent.start_holder(3)
    assert (holder.hello.role, holder.hello.name, holder.hello.generation) == ("weights", "weights", 3)
    assert holder.hello.pid == holder.process.pid
    assert holder.hear() == WeightsReady(3, str(parent.run_dir / "weights-g3.json"), 794624)
    assert holder.process.poll() is None
    holder.channel.close()
    assert holder.process.wait(DEADLINE_S) == 0


def test_what_cannot_be_imported_is_said_and_is_the_installations_fault(
    parent: Parent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text(
        "raise ImportError('libcudnn.so.9: cannot open shared object file')\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "broken")
    monkeypatch.syspath_prepend(tmp_path)  # what a child is given begins with the second
    holder = parent.start_holder()
    assert holder.hear() == ChildFailed(
        "what serves a model cannot be imported: libcudnn.so.9: cannot open shared object file", "settings"
    )
    assert holder.process.wait(DEADLINE_S) == 1


def test_sigterm_ends_it_and_a_message_that_is_not_for_it(parent: Parent) -> None:
    one, two = parent.start_holder(1), parent.start_holder(2)
    assert one.hear().generation == 1
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(DEADLINE_S) == -signal.SIGTERM
    assert two.hear().generation == 2
    two.channel.send(SetPath("fused"))
    assert two.process.wait(DEADLINE_S) == 0


def test_what_a_killed_holder_held_still_serves_those_that_mapped_it(parent: Parent, demo: Path) -> None:
    holder = parent.start_holder()
    layers = open_layers(Path(holder.hear().manifest), CPU)
    holder.process.kill()
    holder.process.wait(DEADLINE_S)
    # as when the next generation's files take their place
    for file in parent.run_dir.glob("weights-g1*"):
        file.unlink()
    for index, layer in enumerate(layers.values()):
        for name, tensor in Checkpoint.open(demo).load(index, "cpu", torch.float32).tensors.items():
            assert torch.equal(layer.tensors[name], tensor)


def test_a_checkpoint_that_cannot_be_served_is_blamed_on_the_settings(tmp_path: Path, in_memory: Path) -> None:
    parent = Parent(settings_for(tmp_path, in_memory))
    try:
        holder = parent.start_holder()
        reason = f"{tmp_path}/config.json: not found; every Hugging Face model directory has one"
        assert holder.hear() == ChildFailed(reason, "settings")
        with pytest.raises(ChannelClosed):
            holder.hear()
        assert holder.process.wait(DEADLINE_S) == 1
    finally:
        parent.stop()


def test_too_small_a_tmpfs_is_blamed_on_the_settings_before_any_memory_is_taken(
    tmp_path: Path, in_memory: Path
) -> None:
    free = os.statvfs(in_memory)
    layer_bytes = 4 * (16384 + 3 * 16384 * 8192)
    layers = free.f_bavail * free.f_frsize // layer_bytes + 1
    write_hollow_model(tmp_path, layers)
    parent = Parent(settings_for(tmp_path, in_memory))
    try:
        failed = parent.start_holder().hear()
    finally:
        parent.stop()
    assert isinstance(failed, ChildFailed)
    assert failed.blame == "settings"
    text, available = failed.reason.split(" bytes, and ")
    assert text == f"{in_memory}: the weights of {layers} layers take {layers * layer_bytes}"
    assert available.endswith(" are free on this tmpfs; a larger one or fewer model.layers are needed")
    assert int(available.split()[0]) < layers * layer_bytes
    assert list(in_memory.glob("weights-*")) == []


def write_hollow_model(directory: Path, layers: int) -> None:
    """One expert a layer, 805 MB in float16, in files that are nearly all holes."""
    hidden, intermediate = 16384, 8192
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "num_hidden_layers": layers, "hidden_size": hidden,
        "moe_intermediate_size": intermediate, "num_experts": 1, "num_experts_per_tok": 1,
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    for layer in range(layers):
        header, end = {}, 0
        for name, shape in (
            ("gate", [1, hidden]),
            ("experts.0.gate_proj", [intermediate, hidden]),
            ("experts.0.up_proj", [intermediate, hidden]),
            ("experts.0.down_proj", [hidden, intermediate]),
        ):
            size = 2 * shape[0] * shape[1]
            entry = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
            header[f"model.layers.{layer}.mlp.{name}.weight"] = entry
            end += size
        text = json.dumps(header).encode()
        with (directory / f"layer-{layer}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)


def test_a_worker_serves_what_the_manifest_names(parent: Parent) -> None:
    manifest = parent.start_holder().hear().manifest
    (parent.run_dir / "arena").write_bytes(bytes(1 << 20))
    Page.create(parent.run_dir / "worker-a-g1.page", generation=1, slots=2)
    worker = parent.start(
        "fdmoe_ops.worker", "--device", "cpu", "--weights", manifest, "--name", "a", "--generation", "1"
    )
    infos = tuple(LayerInfo(f"tiny/layers.{index}", 64, "FP32", 8, 2) for index in range(4))
    ready = worker.hear()
    assert ready == WorkerReady(1, infos, 4, fused=True, abort_s=ready.abort_s)
    assert 0 < ready.abort_s < 60


def test_a_worker_whose_weights_are_gone_says_so(parent: Parent) -> None:
    Page.create(parent.run_dir / "worker-a-g1.page", generation=1, slots=2)
    manifest = parent.run_dir / "weights-g9.json"
    worker = parent.start(
        "fdmoe_ops.worker", "--device", "cpu", "--weights", str(manifest), "--name", "a", "--generation", "1"
    )
    assert worker.hear() == ChildFailed(f"{manifest}: No such file or directory", "unknown")
    assert worker.process.wait(DEADLINE_S) == 1
