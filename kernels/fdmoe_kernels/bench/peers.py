"""What others took for the same layers: transformers, torch, ScatterMoE, vLLM, SGLang, Triton's kernels, DeepGEMM,
LigerCute, measured by our rules (timing.py) on one NVIDIA H200 in bfloat16 on 2026-11-24."""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib import resources
from typing import Literal

Mode = Literal["eager", "graph"]
DTYPE = "bfloat16"
# Experts that somebody chose in the peers' batches, by their weight GB/s: with a few tokens chance decides how many
# weights are read. In all other cells K for one token, and for more tokens every expert, as all random batches do.
_CHOSEN_EXPERTS = {
    ("qwen3-30b-a3b", 16): 88,
    ("qwen3-30b-a3b", 64): 125,
    ("olmoe", 16): 50,
    ("olmoe", 64): 64,
    ("mixtral-8x7b", 16): 8,
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One row of peers-h200.csv: median microseconds, None where the peer cannot run so; error against float32."""

    model: str
    tokens: int
    peer: str
    eager_us: float | None
    graph_us: float | None
    relative_error: float
    note: str

    def latency_us(self, mode: Mode) -> float | None:
        return self.eager_us if mode == "eager" else self.graph_us


@functools.cache
def load_peers() -> tuple[Peer, ...]:
    """The whole table."""
    text = (resources.files("fdmoe_kernels.bench") / "peers-h200.csv").read_text()
    return tuple(
        Peer(
            row["model"],
            int(row["tokens"]),
            row["peer"],
            float(row["eager_us"]) if row["eager_us"] else None,
            float(row["graph_us"]) if row["graph_us"] else None,
            float(row["relative_error"]),
            row["note"],
        )
        for row in csv.DictReader(text.splitlines())
    )


def chosen_experts(model: str, tokens: int) -> int | None:
    """How many experts the batch of a cell's peers chose, where that was left to chance."""
    return _CHOSEN_EXPERTS.get((model, tokens))


def best_peer(model: str, tokens: int, dtype: str, mode: Mode) -> tuple[str, float] | None:
    """Name and microseconds of the fastest peer of a cell in the same mode; None for a cell the table does not have."""
    if dtype != DTYPE:
        return None
    times = [
        (time, peer.peer)
        for peer in load_peers()
        if (peer.model, peer.tokens) == (model, tokens) and (time := peer.latency_us(mode)) is not None
    ]
    if not times:
        return None
    time, name = min(times)
    return name, time
