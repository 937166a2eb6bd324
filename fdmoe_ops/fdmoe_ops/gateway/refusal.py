"""How a request ends without an answer.

Exception
├── Refusal       an HTTP status from 400 on, with a text that names the value found and what is allowed
└── ClientGone    nobody is left to be told
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a request was turned away that would be served at another time, or never got as far as a layer."""

    QUEUE_REQUESTS = "queue_requests"
    QUEUE_TOKENS = "queue_tokens"
    QUEUE_BYTES = "queue_bytes"
    UPLOADS = "uploads"
    ARENA = "arena"
    STARTING = "starting"
    DRAINING = "draining"
    HEAD_MALFORMED = "head_malformed"
    HEAD_SIZE = "head_size"
    HEAD_TIMEOUT = "head_timeout"


class Refusal(Exception):
    """Becomes {"error": message} with this status. `path` is the one that computed, if any did."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        path: str = "none",
        reason: Reason | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.path = path
        self.reason = reason


class ClientGone(Exception):
    """The client closed its connection before it had the answer."""
