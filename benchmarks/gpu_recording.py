"""`python benchmarks/gpu_recording.py --out FILE`: what NVML says of a GPU that serves, stalls and recovers.

A real tree serves a layer of Qwen3-30B-A3B's shape (or --model-path) on one GPU. NVML is read as the probe reads it,
once a second: while nobody asks for anything, under load, while a launch stalls (the stall time is set so high that it
lasts), and under load again. The file is a recording that `watchdog.gpu_recording` replays. The GPU's UUID and the
processes' ids are left out of it; every other figure is as it was read.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
from qwen3_layer import write_qwen3_layer

from fdmoe_ops.chaos.events import EventTail
from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, running_tree
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_watchdog.messages import GpuFigures, GpuProcess
from fdmoe_watchdog.probe.nvml import NvmlBackend
from fdmoe_watchdog.probe.recorded import FORMAT, Recording, Step

STALLED = "busy without progress"
_STALL_S = 8.0
_DEADLINE_S = 120.0


class Recorder:
    """Readings of one GPU, once a second, each under the name of the state that it was read in."""

    def __init__(self, device: str) -> None:
        self._device = NvmlBackend().open(device)
        # averages are over the time since the reading before
        self._device.read()
        self._started = time.monotonic()
        self.steps: list[Step] = []

    def record(self, state: str, over: Callable[[], bool]) -> None:
        """Until `over`."""
        while not over():
            self.read_once(state)

    def read_once(self, state: str) -> None:
        time.sleep(1.0)
        (figures,) = self._device.read().gpus
        after_s = round(time.monotonic() - self._started, 2)
        self.steps.append(Step(after_s, state, "read from NVML", _nameless(figures)))


def _nameless(figures: GpuFigures) -> GpuFigures:
    processes = tuple(GpuProcess(101 + n, process.memory_bytes) for n, process in enumerate(figures.processes or ()))
    uuid = "recorded-" + figures.name.lower().replace(" ", "-")
    return msgspec.structs.replace(figures, uuid=uuid, processes=processes)


def record(tree: Tree, pool: Pool, device: str, seconds: float) -> list[Step]:
    recorder = Recorder(device)

    def after(duration_s: float) -> Callable[[], bool]:
        end = time.monotonic() + duration_s
        return lambda: time.monotonic() >= end

    tail = EventTail(tree)
    try:
        recorder.record("idle", after(seconds))
        with Load(tree.gateway_address, pool, clients=8) as load:
            recorder.record("working", after(seconds))
            mark = tail.mark()
            tree.arm("stall")
            tail.wait(mark, ("fault_armed",), _DEADLINE_S)
            recorder.read_once("stalling")  # there is work in its average
            recorder.record(STALLED, lambda: any(event["event"] == "stall" for event in tail.since(mark)))
            tail.wait(mark, ("recovery",), _DEADLINE_S)
            recorder.record("recovered", after(seconds))
        bad = [sent for sent in load.sent if sent.failed or sent.wrong]
        assert not bad, f"{len(bad)} of {len(load.sent)} requests were lost or wrong; the first: {bad[0]}"
    finally:
        tail.close()
    return recorder.steps


def _lines(recording: Recording) -> str:
    """JSON with a step a line."""
    head = {"format": recording.format, "origin": recording.origin, "length_s": recording.length_s}
    steps = ",\n".join(f"  {msgspec.json.encode(step).decode()}" for step in recording.steps)
    fields = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in head.items())
    return f'{{\n{fields} "steps": [\n{steps}\n ],\n "xids": []\n}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu_recording.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--model-path", type=Path, help="checkpoint; without it a layer of Qwen3-30B-A3B's shape")
    parser.add_argument("--device", default="0", help="index of the GPU, or its UUID")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each state but the stalled one")
    parser.add_argument("--commit", default="unknown", help="written into the file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fdmoe-recording-") as directory:
        path = options.model_path
        if path is None:
            path = Path(directory)
            write_qwen3_layer(path)
        checkpoint = Checkpoint.open(path)
        index = checkpoint.moe_layers[0]
        layer = checkpoint.load(index, device="cpu", dtype=checkpoint.dtype)
        pool = Pool.of(f"m/layers.{index}", layer, max_tokens=64)
        flags = (
            f"--model-path={path}", "--model-name=m", f"--model-layers={index}", f"--devices={options.device}",
            "--enable-chaos", f"--recovery-stall-floor-s={_STALL_S}", f"--recovery-stall-ceiling-s={_STALL_S}",
            f"--recovery-stall-first-s={_STALL_S}", "--recovery-answer-deadline-s=30",
            "--recovery-cooldown-initial-s=0.2",
        )  # fmt: skip
        with running_tree(*flags) as tree:
            steps = record(tree, pool, options.device, options.seconds)
    name, first_s = steps[0].figures.name, steps[0].after_s
    origin = f"Captured from NVML on one {name} by benchmarks/gpu_recording.py at commit {options.commit}."
    from_zero = tuple(msgspec.structs.replace(step, after_s=round(step.after_s - first_s, 2)) for step in steps)
    recording = Recording(FORMAT, origin, round(from_zero[-1].after_s + 1.0, 2), from_zero)
    options.out.write_text(_lines(recording))
    return 0


if __name__ == "__main__":
    sys.exit(main())
