"""Watchdog and gateway, and the batches between gateway and workers."""

from __future__ import annotations

from typing import Literal

import msgspec

from fdmoe_watchdog.messages.base import Message, Path

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
    """The connection to this generation broke, and it has been fenced: it is of no use any more, alive or not.
    `unreachable`: none came about within recovery.route_deadline_s, or the worker said nothing on it."""

    worker: str
    generation: int
    reason: str
    cause: Literal["exit", "unreachable"] = "exit"


# ---- gateway -> worker


class Segment(msgspec.Struct, frozen=True, array_like=True):
    """One request's rows: `tokens` x hidden_size elements at each of two byte offsets of the arena."""

    input_offset: int
    output_offset: int
    tokens: int


class Replay(msgspec.Struct, frozen=True, array_like=True):
    """The first `tokens` rows of a batch were with this generation, which was fenced."""

    worker: str
    generation: int
    tokens: int


class Batch(Message, frozen=True):
    """Run one layer over the segments' rows, one after another. `requests`: the ids of the first MAX_NAMED_REQUESTS
    segments' requests, for log lines and records. `replay`: of a batch whose head is sent again."""

    generation: int
    batch: int
    layer: str
    segments: tuple[Segment, ...]
    requests: tuple[str, ...] = ()
    replay: Replay | None = None


# ---- worker -> gateway


class Answer(Message, frozen=True):
    """The outputs are in the arena, or `error` says why not. `path` served it in `compute_ns` of host time."""

    generation: int
    batch: int
    path: Path
    compute_ns: int
    error: str = ""
