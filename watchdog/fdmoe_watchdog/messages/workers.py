"""Workers and holders of weights tell the watchdog and the gateway; the watchdog tells workers."""

from __future__ import annotations

from typing import Literal

import msgspec

from fdmoe_watchdog.messages.base import KernelFault, Message, Path


class LayerInfo(msgspec.Struct, frozen=True, array_like=True):
    """A served layer: `name` is unique in the tree, `dtype` is BF16, FP16 or FP32."""

    name: str
    hidden_size: int
    dtype: Literal["BF16", "FP16", "FP32"]
    experts: int
    top_k: int


class WorkerReady(Message, frozen=True):
    """Warm, and listening on its data socket. Sent to the watchdog, and to the gateway when it connects. `fused` is
    False where the fused path could not be proven: such a worker serves on the baseline alone. `abort_s`: the longest
    that a stalled launch of its abort drill took to end, from the word to the end."""

    generation: int
    layers: tuple[LayerInfo, ...]
    max_batch_tokens: int
    fused: bool = True
    abort_s: float = 0.0


class WeightsReady(Message, frozen=True):
    """The holder of this generation has the served layers in memory: `manifest` is the file that says how to map
    them, `size_bytes` what they take."""

    generation: int
    manifest: str
    size_bytes: int


class Compared(Message, frozen=True):
    """One batch was computed on both paths, of which `served` gave the answer. `relative_error` is
    ||fused - baseline|| / ||baseline||, `row_error` that of the token that is most apart. `requests`: of a batch that
    was not ok, its requests' ids (Batch). `suspect`: it took much longer on the fused path than is usual."""

    layer: str
    tokens: int
    served: Path
    relative_error: float
    row_error: float
    ok: bool
    requests: tuple[str, ...] = ()
    suspect: bool = False


class Slow(Message, frozen=True):
    """The fused path of this layer and token bucket has become slow, and the device has not: medians over the last
    batches that ran on both paths, and what was usual before. `excused`: the baseline has as well, or would take nearly
    as long: it is no reason to leave the fused path."""

    layer: str
    tokens: int
    served: Path
    fused_ns: int
    baseline_ns: int
    usual_fused_ns: int
    usual_baseline_ns: int
    excused: bool = False


class ExpertTokens(Message, frozen=True):
    """How many of these tokens of this layer went to each routed expert, counted on the baseline by whoever answered
    them: of a launch of this generation that was aborted, or of what a generation had that was fenced, whose `launch`
    is None."""

    worker: str
    generation: int
    launch: int | None
    layer: str
    tokens: int
    counts: tuple[int, ...]


class FaultArmed(Message, frozen=True):
    """Answer to ArmFault: the next fused launches have the fault, or why not."""

    fault: KernelFault
    ok: bool
    reason: str


# ---- watchdog -> worker


class SetPath(Message, frozen=True):
    """Which path serves from the next batch on; `shadow`: baseline answers, fused runs beside it and is compared.

    `buckets`: the token buckets that `fused` is for, all others being served as in `shadow`; None: all.
    """

    path: Path
    buckets: tuple[int, ...] | None = None


class ArmFault(Message, frozen=True):
    """The next `launches` fused launches are to have this fault. Workers of a tree without chaos refuse."""

    fault: KernelFault
    launches: int


class Block(Message, frozen=True):
    """The worker's one thread, or the probe's next reading of a device, is to do nothing for so long, where chaos is
    allowed."""

    seconds: float
