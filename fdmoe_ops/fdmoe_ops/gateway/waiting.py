"""Those who wait, for a body or for an outcome: how long they may, and whether they are still there."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.types import Receive

from fdmoe_ops.gateway.batcher import Outcome
from fdmoe_ops.gateway.refusal import ClientGone, Reason, Refusal

# Watching a connection takes a task; most answers come sooner than this, and then none is made.
_LOOK_EVERY_S = 0.05
_LEAST_PAUSE_S = 0.001


@dataclass(slots=True, eq=False)
class Waiter:
    """One request. Times are those of time.monotonic; `reading` while its body is not complete.

    timeout_s         how long it may take in all, from `arrived` on
    upload_timeout_s  how much of that its client may take to send the body
    ended             why its reading was cut short, if it was
    """

    receive: Receive
    arrived: float
    timeout_s: float
    upload_timeout_s: float
    task: asyncio.Task[None]
    future: asyncio.Future[Outcome]
    reading: bool = True
    ended: Refusal | None = None
    watcher: asyncio.Task[None] | None = field(default=None)

    @property
    def deadline(self) -> float:
        return self.arrived + self.timeout_s

    @property
    def next_limit(self) -> float:
        """When it is told that it has waited long enough for what it waits for now."""
        return self.arrived + min(self.timeout_s, self.upload_timeout_s) if self.reading else self.deadline

    def deliver(self, outcome: Outcome | None) -> None:
        if outcome is None:
            self.end(self.too_late())
        elif not self.future.done():
            self.future.set_result(outcome)

    def too_late(self) -> Refusal:
        if self.reading:
            return Refusal(408, f"the body was not complete after {min(self.timeout_s, self.upload_timeout_s):g} s")
        return Refusal(504, f"no worker answered within {self.timeout_s:g} s")

    def end(self, error: Refusal | ClientGone) -> None:
        """Whatever it waits for, this comes instead, unless something has come or ended it already."""
        if not self.reading:
            if not self.future.done():
                self.future.set_exception(error)
        elif self.ended is None:
            assert isinstance(error, Refusal), "a client that leaves its body is seen by its reader"
            self.ended = error
            self.task.cancel()


class WaitingRoom:
    """One timer for all who wait: a timer and a task for each would cost more than the rest of a small request."""

    def __init__(self, timeout_s: float, upload_timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._upload_timeout_s = upload_timeout_s
        self._waiters: dict[Waiter, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = 0.0
        self._closed = ""
        self._emptied: asyncio.Event | None = None

    def enter(self, receive: Receive, arrived: float, timeout_s: float | None) -> Waiter:
        """A request has come, and this is its task: where its time is up, its reading is cancelled. Leave in the end.

        `timeout_s` is what it asks for itself. Raises Refusal (503) where the room is closed.
        """
        if self._closed:
            raise Refusal(503, self._closed)
        task = asyncio.current_task()
        assert task is not None, "not in a task"
        future = asyncio.get_running_loop().create_future()
        waiter = Waiter(receive, arrived, self.timeout_s, self._upload_timeout_s, task, future)
        self._waiters[waiter] = None
        self.limit(waiter, self.timeout_s if timeout_s is None else timeout_s)
        return waiter

    def limit(self, waiter: Waiter, timeout_s: float) -> None:
        """The smaller of this and what holds already counts."""
        if timeout_s < waiter.timeout_s:
            waiter.timeout_s = timeout_s
        if self._timer is None or waiter.next_limit < self._look_at:
            self._look_later(waiter.next_limit)

    def leave(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        if waiter.watcher is not None:
            waiter.watcher.cancel()
        if self._emptied is not None and not self._waiters:
            self._emptied.set()

    async def outcome(self, waiter: Waiter) -> Outcome:
        """Raises ClientGone, or Refusal: 504 at the deadline, 503 when the room is closed."""
        waiter.reading = False
        return await waiter.future

    async def emptied(self) -> None:
        """Returns when nobody is left. Who comes later is not waited for."""
        self._emptied = asyncio.Event()
        if self._waiters:
            await self._emptied.wait()

    def close(self, text: str) -> None:
        """Whoever waits, now or later, is answered 503 with this text."""
        self._closed = text
        for waiter in self._waiters:
            waiter.end(Refusal(503, text, reason=Reason.DRAINING))

    def _look(self) -> None:
        self._timer = None
        now = time.monotonic()
        next_limit = now + _LOOK_EVERY_S
        for waiter in self._waiters:
            limit = waiter.next_limit
            if limit <= now:
                waiter.end(waiter.too_late())
                continue
            next_limit = min(next_limit, limit)
            if not waiter.reading and waiter.watcher is None:
                waiter.watcher = asyncio.get_running_loop().create_task(_watch(waiter))
        if self._waiters:
            self._look_later(next_limit)

    def _look_later(self, at: float) -> None:
        """Then, or after the usual pause if that is sooner."""
        if self._timer is not None:
            self._timer.cancel()
        now = time.monotonic()
        pause_s = min(max(at - now, _LEAST_PAUSE_S), _LOOK_EVERY_S)
        self._look_at = now + pause_s
        self._timer = asyncio.get_running_loop().call_later(pause_s, self._look)


async def _watch(waiter: Waiter) -> None:
    """The body is complete, so the next thing that comes of the client is its leaving."""
    while (await waiter.receive())["type"] != "http.disconnect":
        pass
    waiter.end(ClientGone())
