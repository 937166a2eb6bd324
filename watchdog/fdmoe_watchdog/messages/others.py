"""The annotator, and the command line."""

from __future__ import annotations

from fdmoe_watchdog.messages.base import Fault, Message

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
