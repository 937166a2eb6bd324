"""How a request ends without an answer.

Exception
├── Refusal       an HTTP status from 400 on, with a text that names the value found and what is allowed
└── ClientGone    nobody is left to be told
"""

from __future__ import annotations


class Refusal(Exception):
    """Becomes {"error": message} with this status. `path` is the one that computed, if any did."""

    def __init__(
        self, status: int, message: str, *, headers: tuple[tuple[bytes, bytes], ...] = (), path: str = "none"
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        self.path = path


class ClientGone(Exception):
    """The client closed its connection before it had the answer."""
