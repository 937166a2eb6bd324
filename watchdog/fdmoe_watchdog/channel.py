"""Message channels between the processes of a tree: SOCK_SEQPACKET Unix sockets, non-blocking, one message a packet."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from pathlib import Path

import msgspec

from fdmoe_watchdog.messages import PROTOCOL, AnyMessage, Hello, Message, decode, encode

MAX_PACKET_BYTES = 128 * 1024


class ChannelClosed(ConnectionError):
    """The peer is gone, speaks another protocol version, or sent what is no message."""


class Channel:
    """One connection. Neither side blocks: a peer that does not read is a peer that is gone.

    `receive` returns None when nothing waits; both raise ChannelClosed when the connection cannot be used any more.
    """

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self.hello: Hello | None = None

    @classmethod
    def connect(cls, path: Path, hello: Hello) -> Channel:
        """Connect to a listening peer and say hello. Raises OSError (nobody listens) or ChannelClosed."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connected.connect(str(path))
            channel = cls(connected)
            channel.send(hello)
        except OSError:
            connected.close()
            raise
        return channel

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def peer_pid(self) -> int:
        """The process at the other end, by the kernel's word: of a listening peer, the one that called listen."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid: int = struct.unpack("3i", credentials)[0]
        return pid

    def send(self, message: Message) -> None:
        packet = encode(message)
        if len(packet) > MAX_PACKET_BYTES:
            raise ChannelClosed(
                f"a {type(message).__name__} of {len(packet)} bytes; at most {MAX_PACKET_BYTES} are sent"
            )
        try:
            self._socket.send(packet)
        except OSError as error:
            raise ChannelClosed(f"peer does not take messages: {error}") from error

    def receive(self) -> AnyMessage | None:
        try:
            packet = self._socket.recv(MAX_PACKET_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise ChannelClosed(str(error)) from error
        if not packet:
            raise ChannelClosed("peer closed the connection")
        try:
            message = decode(packet)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ChannelClosed(f"not a message of protocol {PROTOCOL}: {error}") from error
        if isinstance(message, Hello):
            if message.protocol != PROTOCOL:
                raise ChannelClosed(f"peer speaks protocol {message.protocol}; this side speaks {PROTOCOL}")
            self.hello = message
        return message

    def close(self) -> None:
        self._socket.close()


class Listener:
    """A listening socket of mode 0600 at `path`; it replaces a file that is there already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            self._socket.bind(str(path))
        finally:
            os.umask(old)
        self._socket.listen(64)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> Channel | None:
        """The next connection, or None when nobody waits."""
        try:
            connected, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return None
        return Channel(connected)

    def close(self) -> None:
        self._socket.close()
        with contextlib.suppress(OSError):
            self.path.unlink()
