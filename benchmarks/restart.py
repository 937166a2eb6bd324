"""`python benchmarks/restart.py MODEL`: how long a worker takes to start beside a holder of few and of many layers.

MODEL is a checkpoint with one MoE layer (benchmarks/qwen3_layer.py); one with more layers has that layer again and
again, as files in /dev/shm. For each a tree is started, and its standby is killed some times; the times are those of
the event worker_ready, from the start of the successor's process, or its taking over of a spare one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import describe_machine, reproduce, write_rows
from safetensors.torch import load_file, save_file

from fdmoe_ops.chaos.tree import Tree, read_events, running_tree

_STAGES = ("starting_s", "trial_s", "loading_s", "compiling_s")


@contextlib.contextmanager
def repeated(model: Path, layers: int) -> Iterator[Path]:
    """A checkpoint with layer 0 of `model` so many times; one file a layer."""
    if layers == 1:
        yield model
        return
    config = json.loads((model / "config.json").read_text())
    tensors = load_file(model / "model.safetensors")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory, weight_map = Path(name), {}
        (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        for layer in range(layers):
            file = f"model-{layer}.safetensors"
            renamed = {key.replace("layers.0.", f"layers.{layer}."): tensor for key, tensor in tensors.items()}
            save_file(renamed, directory / file)
            weight_map |= dict.fromkeys(renamed, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        yield directory


def restart_standby(tree: Tree) -> dict[str, Any]:
    """Kill it; the event that says that its successor is ready."""
    # on a GPU the spare processes must be there: what is measured is not their imports
    tree.wait_until("the spare processes", tree.has_its_spares)
    before = {_who(event) for event in read_events(tree) if event["event"] == "worker_ready"}
    tree.arm("kill-standby")

    def ready() -> list[dict[str, Any]]:
        found = [event for event in read_events(tree) if event["event"] == "worker_ready"]
        return [event for event in found if _who(event) not in before]

    event: dict[str, Any] = tree.wait_until("the successor", ready)[0]
    return event


def _who(event: dict[str, Any]) -> tuple[str, int]:
    return event["worker"], event["generation"]


def measure(model: Path, layers: int, device: str, repetitions: int) -> dict[str, object]:
    served = f"--model-layers={','.join(map(str, range(layers)))}"
    with repeated(model, layers) as directory:
        flags = (f"--model-path={directory}", served, f"--devices={device}", "--recovery-restart-budget=100")
        with running_tree("--enable-chaos", *flags) as tree:
            size_bytes = next(e["size_bytes"] for e in read_events(tree) if e["event"] == "weights_ready")
            ready = [restart_standby(tree) for _ in range(repetitions)]
    times = [event["seconds"] for event in ready]
    stages = {f"{stage[:-2]}_p50_s": round(statistics.median(e[stage] for e in ready), 3) for stage in _STAGES}
    return {
        "layers": layers,
        "weights_bytes": size_bytes,
        "repetitions": repetitions,
        "restart_p50_s": round(statistics.median(times), 3),
        "restart_max_s": round(max(times), 3),
        **stages,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/restart.py", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 12])
    parser.add_argument("--devices", default="cuda", help="as of fdmoe serve")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    options = parser.parse_args()
    about = describe_machine() | {"commit": options.commit, "command": reproduce()}
    rows = [measure(options.model, layers, options.devices, options.repetitions) | about for layers in options.layers]
    write_rows(rows, options.csv)


if __name__ == "__main__":
    main()
