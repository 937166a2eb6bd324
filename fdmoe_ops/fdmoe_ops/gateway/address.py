"""The gateway's address. Apart from the server, so that the command line can try it without what a server needs."""

from __future__ import annotations

import socket

BACKLOG = 2048
# an answer that nobody reads is kept in memory; after so long without a byte taken Linux drops the connection
UNREAD_MS = 60_000


def bind(host: str, port: int) -> socket.socket:
    """A listening TCP socket: from here on clients are queued, not refused. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    # the connections inherit it
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_MS)
    return listening
