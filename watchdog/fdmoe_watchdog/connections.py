"""Who is connected to the watchdog: one listening socket, many channels, none of which can hold up the loop."""

from __future__ import annotations

import contextlib
import selectors
from collections.abc import Iterator
from pathlib import Path

from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.messages import AnyMessage


class Connections:
    """Listens on a Unix socket until it is closed."""

    def __init__(self, path: Path, events: EventLog) -> None:
        self._events = events
        self._listener = Listener(path)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def wait(self, timeout_s: float) -> Iterator[tuple[Channel, AnyMessage | ChannelClosed]]:
        """What came within the time: messages, at most one of each channel, and ends, after which it is dropped."""
        for key, _ in self._selector.select(timeout_s):
            channel: Channel | None = key.data
            if channel is None:
                self._accept()
                continue
            try:
                message = channel.receive()
            except ChannelClosed as error:
                self.drop(channel)
                if channel.hello is None:
                    self._events.add("refused_connection", level="warning", reason=str(error))
                yield channel, error
                continue
            if message is not None:
                yield channel, message

    def drop(self, channel: Channel) -> None:
        """Close it; once more is nothing."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(channel)
        channel.close()

    def close(self) -> None:
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        try:
            channel = self._listener.accept()
        except OSError as error:
            # out of file descriptors: whoever knocked tries again
            self._events.add("not_accepted", level="warning", reason=str(error))
            return
        if channel is not None:
            self._selector.register(channel, selectors.EVENT_READ, channel)
