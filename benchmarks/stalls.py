"""`python benchmarks/stalls.py`: stalls under load, end to end, in a real tree.

Clients send requests without a pause while faults are injected one after another. Every answer is compared with the
float32 reference. Two times are reported for each fault:

    detect   from the host's launch of the faulty kernel to the watchdog's decision (so a little more than the stall)
    answer   the longest that a client waited for a request that was in flight during the stall; of 8 clients' requests
             some are in the stalled batch and the others behind it
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from qwen3_layer import write_qwen3_layer
from rows import describe_machine, reproduce, write_rows

from fdmoe_ops.chaos.load import Load, Pool, Sent
from fdmoe_ops.chaos.tree import Tree, read_events, running_tree
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.demo import write_demo_model

PROMISES = {"stall": (100, 250), "endless": (100, 500)}  # detection and answer, p99, ms


def inject(tree: Tree, load: Load, fault: str, timeout_s: float) -> dict[str, float]:
    """One fault from the fused path back to the fused path; the times of its detection and answer, ms."""
    tree.wait_until("the fused path", lambda: _is_whole(tree), timeout_s)
    before = time.time()
    tree.arm(fault)

    def events_since() -> list[dict[str, Any]]:
        return [
            event for event in read_events(tree) if datetime.fromisoformat(event["at"]).timestamp() >= before - 0.001
        ]

    def recovered() -> dict[str, Any] | None:
        return next((event for event in events_since() if event["event"] == "recovery"), None)

    rung = tree.wait_until("the recovery", recovered, timeout_s)["rung"]
    stall = next(event for event in events_since() if event["event"] == "stall")
    # half-way between the launch and the decision: whoever was in flight then waited for the stalled device
    stalled = (
        datetime.fromisoformat(stall["at"]).timestamp() - stall["begun_s_ago"] / 2 + time.monotonic() - time.time()
    )

    def caught() -> list[Sent]:
        return [sent for sent in list(load.sent) if sent.start < stalled < sent.end]

    # each client waits for one answer at a time, and the slowest may still be on its way back
    tree.wait_until("the clients' answers", lambda: len(caught()) == load.clients, timeout_s)
    tree.wait_until("the fused path", lambda: _is_whole(tree), timeout_s)
    waits = [(sent.end - sent.start) * 1e3 for sent in caught()]
    print(
        f"{fault}: detected after {stall['begun_s_ago'] * 1e3:.1f} ms, rung {rung}, {len(waits)} requests in flight "
        f"answered after at most {max(waits):.1f} ms; {stall['verdict']}",
        file=sys.stderr,
        flush=True,
    )
    return {"detect_ms": stall["begun_s_ago"] * 1e3, "answer_ms": max(waits)}


def _is_whole(tree: Tree) -> bool:
    status = tree.status()
    return status["path"] == "fused" and all(worker["state"] == "ready" for worker in status["workers"])


def percentile(values: list[float], share: float) -> float:
    """Nearest rank: with 20 values, the 99th percentile is the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def checkpoint_for(model: str, directory: Path) -> Checkpoint:
    if model == "demo":
        write_demo_model(directory / "demo")
        return Checkpoint.open(directory / "demo")
    (directory / "qwen3").mkdir()
    write_qwen3_layer(directory / "qwen3")
    return Checkpoint.open(directory / "qwen3")


def rows(options: argparse.Namespace, directory: Path) -> Iterator[dict[str, object]]:
    checkpoint = checkpoint_for(options.model, directory)
    index = checkpoint.moe_layers[0]
    layer = checkpoint.load(index, device="cpu", dtype=checkpoint.dtype)
    pool = Pool.of(f"m/layers.{index}", layer, options.max_tokens)
    flags = (
        f"--model-path={checkpoint.path}", "--model-name=m", f"--model-layers={index}", "--enable-chaos",
        f"--devices={options.devices}", "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2",
        "--recovery-restart-budget=1000", "--recovery-backoff-max-s=0.2",
    )  # fmt: skip
    with running_tree(*flags) as tree:
        for fault, repetitions in (("stall", options.stalls), ("endless", options.endless)):
            if not repetitions:
                continue
            with Load(tree.gateway_address, pool, options.clients) as load:
                times = [inject(tree, load, fault, options.timeout_s) for _ in range(repetitions)]
            detect, answer = ([row[key] for row in times] for key in ("detect_ms", "answer_ms"))
            for failure in [sent.failed for sent in load.sent if sent.failed][:5]:
                print(f"failed: {failure}", file=sys.stderr)
            yield {
                "fault": fault,
                "model": options.model,
                "repetitions": repetitions,
                "clients": options.clients,
                "requests": len(load.sent),
                "failed": sum(bool(sent.failed) for sent in load.sent),
                "wrong": sum(sent.wrong for sent in load.sent),
                "replayed": sum(sent.replayed for sent in load.sent),
                "detect_p50_ms": round(statistics.median(detect), 1),
                "detect_p99_ms": round(percentile(detect, 0.99), 1),
                "detect_promise_ms": PROMISES[fault][0],
                "answer_p50_ms": round(statistics.median(answer), 1),
                "answer_p99_ms": round(percentile(answer, 0.99), 1),
                "answer_promise_ms": PROMISES[fault][1],
                "final_path": tree.status()["path"],
                **describe_machine(),
                "commit": options.commit,
                "command": reproduce(),
            }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/stalls.py", description=__doc__)
    parser.add_argument("--model", choices=("demo", "qwen3-30b-a3b"), default="demo")
    parser.add_argument("--devices", default="auto")
    parser.add_argument("--stalls", type=int, default=20, help="how often the abortable fault is injected")
    parser.add_argument("--endless", type=int, default=5, help="how often the fault that needs a kill is injected")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=16, help="tokens of the largest request")
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fdmoe-stalls-") as directory:
        results = list(rows(options, Path(directory)))
    write_rows(results, options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
