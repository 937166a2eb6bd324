"""Those who wait, for a body or for an outcome: how long they may, and whether they are still there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.types import Receive

from fdmoe_ops.gateway.batcher import Outcome
from fdmoe_ops.gateway.refusal import ClientGone, Refusal

# Watching a connection takes a task; most answers come sooner than this, and then none is made.
_LOOK_EVERY_S = 0.05


@dataclass(slots=True, eq=False)
class Waiter:
    """One request. `deadline` is in the loop's time; `reading` while its body is not complete."""

    receive: Receive
    deadline: float
    task: asyncio.Task[None]
    future: asyncio.Future[Outcome]
    reading: bool = True
    expired: bool = False
    watcher: asyncio.Task[None] | None = field(default=None)

    def deliver(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class WaitingRoom:
    """One timer for all who wait: a timer and a task for each would cost more than the rest of a small request."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiters: dict[Waiter, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed: Refusal | None = None

    def enter(self, receive: Receive) -> Waiter:
        """A request has come, and this is its task: at the deadline, its reading is cancelled. Leave in the end."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "not in a task"
        waiter = Waiter(receive, loop.time() + self.timeout_s, task, loop.create_future())
        self._waiters[waiter] = None
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_EVERY_S, self._look)
        return waiter

    def leave(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        if waiter.watcher is not None:
            waiter.watcher.cancel()

    async def outcome(self, waiter: Waiter) -> Outcome:
        """Raises ClientGone, or Refusal: 504 at the deadline, the room's own when it is closed."""
        if self._closed is not None:
            raise self._closed
        waiter.reading = False
        return await waiter.future

    def close(self, reason: Refusal) -> None:
        """Whoever waits for an outcome, now or later, gets this refusal."""
        self._closed = reason
        for waiter in self._waiters:
            if not waiter.reading:
                waiter.fail(reason)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for waiter in self._waiters:
            if waiter.reading:
                if now >= waiter.deadline and not waiter.expired:
                    waiter.expired = True
                    waiter.task.cancel()
            elif now >= waiter.deadline:
                waiter.fail(Refusal(504, f"no worker answered within {self.timeout_s:g} s"))
            elif waiter.watcher is None:
                waiter.watcher = loop.create_task(_watch(waiter))
        self._timer = loop.call_later(_LOOK_EVERY_S, self._look) if self._waiters else None


async def _watch(waiter: Waiter) -> None:
    """The body is complete, so the next thing that comes of the client is its leaving."""
    while (await waiter.receive())["type"] != "http.disconnect":
        pass
    waiter.fail(ClientGone())
