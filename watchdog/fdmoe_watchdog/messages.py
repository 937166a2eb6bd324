"""The messages between the processes of a tree: small, typed, versioned; tensors never travel here (see the arena).

Three conversations, each over one Unix socket of type SOCK_SEQPACKET (a packet is a message), msgpack in each packet:

    watchdog.sock           children tell the watchdog what happened, it tells them what to do; the CLI asks it
    worker-<name>-g<n>.sock the gateway sends batches to a worker, the worker answers

Whoever connects sends Hello first. A Hello of another protocol version is answered by closing the connection.
"""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL = 2
# a batch may have thousands of requests; so many of them are named
MAX_NAMED_REQUESTS = 32
Path = Literal["fused", "shadow", "baseline"]
# what a fused launch can be given (fdmoe_kernels.faults), and what can be done to processes and their pages
KernelFault = Literal["stall", "endless", "nan", "wrong", "slow", "illegal"]
ProcessFault = Literal[
    "kill-active", "stop-active", "kill-standby", "stop-standby", "kill-workers", "stop-workers", "block-worker",
    "kill-holder", "stop-holder", "kill-gateway", "stop-gateway", "kill-probe", "stop-probe",
    "truncate-page", "noise-page",
]  # fmt: skip
Fault = KernelFault | ProcessFault
Role = Literal["worker", "gateway", "weights", "probe", "annotator", "cli"]
# whose fault a failed start is: the checkpoint or the settings (another try would end the same way), the device (the
# node must be looked at), or nobody knows
Blame = Literal["settings", "device", "unknown"]
# where readings come from: the driver, or a file that is replayed where there is no GPU
GpuSource = Literal["nvml", "recorded"]
# NVML answers nothing else any more: the GPU fell off the bus, or must be reset first
GpuFault = Literal["lost", "reset_required"]
# NVML's recovery actions in its order from 0 (nvmlDeviceGpuRecoveryAction_t), and one for what a newer driver adds
RecoveryAction = Literal[
    "none",
    "reset_gpu",
    "reboot_node",
    "drain_p2p",
    "drain_and_reset",
    "recover_imex_domain",
    "reset_bus",
    "reboot_system",
    "unknown",
]
# why clocks are lower than they could be (nvmlClocksEventReasons); `other`: a reason that a newer driver adds
ThrottleReason = Literal[
    "gpu_idle",
    "applications_clocks",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal",
    "hw_thermal",
    "hw_power_brake",
    "display_clock",
    "other",
]
GpuTrouble = Literal["no_library", "no_driver", "no_permission", "no_device", "bad_recording", "error"]


class Message(msgspec.Struct, tag=True, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages: the tag is the class's name."""


# ---- anybody


class Hello(Message, frozen=True):
    """First message of a connection. `generation` is 0 for a role that has none."""

    protocol: int
    role: Role
    name: str
    generation: int
    pid: int


# ---- worker -> watchdog and worker -> gateway


class LayerInfo(msgspec.Struct, frozen=True, array_like=True):
    """A served layer: `name` is unique in the tree, `dtype` is BF16, FP16 or FP32."""

    name: str
    hidden_size: int
    dtype: Literal["BF16", "FP16", "FP32"]
    experts: int
    top_k: int


class WorkerReady(Message, frozen=True):
    """Warm, and listening on its data socket. Sent to the watchdog, and to the gateway when it connects. `fused` is
    False where the fused path could not be proven: such a worker serves on the baseline alone."""

    generation: int
    layers: tuple[LayerInfo, ...]
    max_batch_tokens: int
    fused: bool = True


class ChildFailed(Message, frozen=True):
    """A worker or a weights holder cannot do its work and is about to exit: `reason` is for people."""

    reason: str
    blame: Blame


class WeightsReady(Message, frozen=True):
    """The holder of this generation has the served layers in memory: `manifest` is the file that says how to map
    them, `size_bytes` what they take."""

    generation: int
    manifest: str
    size_bytes: int


class Compared(Message, frozen=True):
    """One batch was computed on both paths, of which `served` gave the answer. `relative_error` is
    ||fused - baseline|| / ||baseline||. `requests`: of a batch that was not ok, its requests' ids (Batch). `suspect`:
    it took much longer on the fused path than is usual."""

    layer: str
    tokens: int
    served: Path
    relative_error: float
    ok: bool
    requests: tuple[str, ...] = ()
    suspect: bool = False


class Slow(Message, frozen=True):
    """The fused path of this layer and token bucket has become slow, and the device has not: medians over the last
    batches that ran on both paths, and what was usual before."""

    layer: str
    tokens: int
    served: Path
    fused_ns: int
    baseline_ns: int
    usual_fused_ns: int
    usual_baseline_ns: int


class ExpertTokens(Message, frozen=True):
    """Of an aborted launch, counted afterwards on the baseline: how many of its tokens went to each routed expert."""

    launch: int
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
    """The worker's one thread is to do nothing for so long, where chaos is allowed."""

    seconds: float


# ---- watchdog -> gateway


class Route(Message, frozen=True):
    """The device's batches go to this worker from now on. What was sent to a fenced generation and is unanswered goes
    again, to whichever device is free."""

    worker: str
    generation: int
    socket: str
    page: str
    device: str


class Fence(Message, frozen=True):
    """Answers of this generation no longer count, and its output areas stay untouched until it is Gone. `cause`: as in
    the watchdog's event of the same name."""

    worker: str
    generation: int
    cause: str = ""


class Gone(Message, frozen=True):
    """The process of this generation has been reaped: nothing writes to its output areas any more."""

    worker: str
    generation: int


class AskInFlight(Message, frozen=True):
    """Which requests does this generation owe an answer to? Asked when a record of its launch is made."""

    worker: str
    generation: int
    launch: int


# ---- gateway -> watchdog


class Listening(Message, frozen=True):
    """The gateway accepts connections at this address."""

    host: str
    port: int


class PathTraffic(msgspec.Struct, frozen=True, array_like=True):
    """Requests that one path answered, and their times from the arrival of the headers to the answer."""

    answered: int
    p50_s: float
    p99_s: float


class Traffic(msgspec.Struct, frozen=True, array_like=True):
    """What the gateway did in the last `seconds`: answers by path (those that gave any), and `failed`, the answers of
    500 and more. `in_flight` and `queued` are counted now."""

    seconds: float
    paths: dict[Path, PathTraffic]
    failed: int
    in_flight: int
    queued: int


class GatewayBeat(Message, frozen=True):
    """The gateway's loop turns. Sent every half second; a gateway that stops sending it is replaced."""

    traffic: Traffic | None = None


class InFlight(Message, frozen=True):
    """Answer to AskInFlight: how many requests were with this generation, and the ids of the first of them. Of one that
    was fenced, those that it had when it was."""

    worker: str
    generation: int
    launch: int
    count: int
    requests: tuple[str, ...]


class LinkLost(Message, frozen=True):
    """The connection to this generation broke, and it has been fenced: it is of no use any more, alive or not."""

    worker: str
    generation: int
    reason: str


# ---- probe -> watchdog


class GpuProcess(msgspec.Struct, frozen=True, array_like=True):
    """A process with a context on the GPU. `memory_bytes` is None where the driver does not say."""

    pid: int
    memory_bytes: int | None


class GpuFigures(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What NVML said of one GPU or MIG instance. None: it did not say, because the chip has no such counter, this
    process may not ask, or the call failed. Ratios are 0 to 1; energy, NVLink bytes and ECC errors count from the
    driver's last load.

    *_activity, sm_occupancy and dram_bandwidth are averages since the reading before (GPM, Hopper and newer).
    A MIG instance has memory, processes and GPM of its own; the rest is its GPU's.
    """

    uuid: str
    name: str
    fault: GpuFault | None = None
    utilization: float | None = None
    sm_activity: float | None = None
    sm_occupancy: float | None = None
    tensor_activity: float | None = None
    dram_bandwidth: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    power_watts: float | None = None
    energy_joules: float | None = None
    temperature_celsius: float | None = None
    sm_clock_hertz: float | None = None
    memory_clock_hertz: float | None = None
    throttle_mask: int | None = None
    throttle_reasons: tuple[ThrottleReason, ...] | None = None
    pcie_received_bytes_per_s: float | None = None
    pcie_transmitted_bytes_per_s: float | None = None
    nvlink_received_bytes_per_s: float | None = None
    nvlink_transmitted_bytes_per_s: float | None = None
    nvlink_received_bytes: int | None = None
    nvlink_transmitted_bytes: int | None = None
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    remapped_rows_corrected: int | None = None
    remapped_rows_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages_pending: bool | None = None
    recovery_action: RecoveryAction | None = None


class GpuReading(Message, frozen=True):
    """`device` was read, as the probe was told to call it: one GPU, or its MIG instances. `begun_ns` is CLOCK_MONOTONIC
    before the first question. `xids_watched` is False where the driver tells of no Xid."""

    device: str
    source: GpuSource
    begun_ns: int
    xids_watched: bool
    gpus: tuple[GpuFigures, ...]


class GpuFailed(Message, frozen=True):
    """Nothing of `device` can be read. Sent at each interval while that is so, in the place of a reading."""

    device: str
    source: GpuSource
    trouble: GpuTrouble
    reason: str


class XidSeen(Message, frozen=True):
    """The driver reported an Xid, seen at `at_ns` of CLOCK_MONOTONIC. `gpu_instance`: of which MIG instance."""

    device: str
    source: GpuSource
    xid: int
    at_ns: int
    gpu_instance: int | None = None


# ---- watchdog -> annotator


class Happened(Message, frozen=True):
    """One decision of the watchdog, as it is in the status document."""

    event: dict[str, str | int | float]


# ---- annotator -> watchdog


class Annotated(Message, frozen=True):
    """What became of annotations since the last such message: written, given up, and never tried."""

    sent: int = 0
    failed: int = 0
    dropped: int = 0


# ---- gateway -> worker


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """One request's rows: `tokens` x hidden_size elements at each of two byte offsets of the arena."""

    input_offset: int
    output_offset: int
    tokens: int


class Batch(Message, frozen=True):
    """Run one layer over the segments' rows, one after another. `requests`: the ids of the first MAX_NAMED_REQUESTS
    segments' requests, for log lines and records."""

    generation: int
    batch: int
    layer: str
    segments: tuple[Segment, ...]
    requests: tuple[str, ...] = ()


# ---- worker -> gateway


class Answer(Message, frozen=True):
    """The outputs are in the arena, or `error` says why not. `path` served it in `compute_ns` of host time."""

    generation: int
    batch: int
    path: Path
    compute_ns: int
    error: str = ""


# ---- CLI <-> watchdog


class StatusRequest(Message, frozen=True):
    pass


class StatusReply(Message, frozen=True):
    """`status` is a JSON document: fdmoe_watchdog.status describes it."""

    status: bytes


class ChaosRequest(Message, frozen=True):
    fault: Fault


class ChaosReply(Message, frozen=True):
    ok: bool
    reason: str


AnyMessage = (
    Hello
    | WorkerReady
    | ChildFailed
    | WeightsReady
    | Compared
    | Slow
    | ExpertTokens
    | FaultArmed
    | SetPath
    | ArmFault
    | Block
    | Route
    | Fence
    | Gone
    | AskInFlight
    | Listening
    | GatewayBeat
    | InFlight
    | LinkLost
    | GpuReading
    | GpuFailed
    | XidSeen
    | Happened
    | Annotated
    | Batch
    | Answer
    | StatusRequest
    | StatusReply
    | ChaosRequest
    | ChaosReply
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(packet: bytes) -> AnyMessage:
    """Raises msgspec.DecodeError for anything that is not exactly one message of this protocol."""
    message: AnyMessage = _decoder.decode(packet)
    return message
