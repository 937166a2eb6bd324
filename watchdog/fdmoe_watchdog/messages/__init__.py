"""The messages between the processes of a tree: small, typed, versioned; tensors never travel here (see the arena).

Two kinds of Unix sockets of type SOCK_SEQPACKET (a packet is a message), msgpack in each packet:

    watchdog.sock           children tell the watchdog what happened, it tells them what to do; the CLI asks it
    worker-<name>-g<n>.sock the gateway sends batches to a worker, the worker answers

Whoever connects sends Hello first. A Hello of another protocol version is answered by closing the connection.
"""

from __future__ import annotations

import msgspec

from fdmoe_watchdog.messages.base import (
    MAX_NAMED_REQUESTS,
    PROTOCOL,
    Blame,
    ChildFailed,
    Fault,
    Hello,
    KernelFault,
    LastingFault,
    Message,
    Path,
    ProcessFault,
    Role,
)
from fdmoe_watchdog.messages.gateways import (
    Answer,
    AskInFlight,
    Batch,
    Fence,
    GatewayBeat,
    Gone,
    InFlight,
    LinkLost,
    Listening,
    PathTraffic,
    Replay,
    Route,
    Segment,
    Traffic,
)
from fdmoe_watchdog.messages.gpus import (
    GpuFailed,
    GpuFault,
    GpuFigures,
    GpuProcess,
    GpuReading,
    GpuSource,
    GpuTrouble,
    RecoveryAction,
    ThrottleReason,
    XidSeen,
)
from fdmoe_watchdog.messages.others import (
    Annotated,
    ChaosReply,
    ChaosRequest,
    Happened,
    StatusReply,
    StatusRequest,
)
from fdmoe_watchdog.messages.workers import (
    ArmFault,
    Block,
    Compared,
    ExpertTokens,
    FaultArmed,
    LayerInfo,
    SetPath,
    Slow,
    WeightsReady,
    WorkerReady,
)

__all__ = [
    "MAX_NAMED_REQUESTS",
    "PROTOCOL",
    "Annotated",
    "Answer",
    "AnyMessage",
    "ArmFault",
    "AskInFlight",
    "Batch",
    "Blame",
    "Block",
    "ChaosReply",
    "ChaosRequest",
    "ChildFailed",
    "Compared",
    "ExpertTokens",
    "Fault",
    "FaultArmed",
    "Fence",
    "GatewayBeat",
    "Gone",
    "GpuFailed",
    "GpuFault",
    "GpuFigures",
    "GpuProcess",
    "GpuReading",
    "GpuSource",
    "GpuTrouble",
    "Happened",
    "Hello",
    "InFlight",
    "KernelFault",
    "LastingFault",
    "LayerInfo",
    "LinkLost",
    "Listening",
    "Message",
    "Path",
    "PathTraffic",
    "ProcessFault",
    "RecoveryAction",
    "Replay",
    "Role",
    "Route",
    "Segment",
    "SetPath",
    "Slow",
    "StatusReply",
    "StatusRequest",
    "ThrottleReason",
    "Traffic",
    "WeightsReady",
    "WorkerReady",
    "XidSeen",
    "decode",
    "encode",
]

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
