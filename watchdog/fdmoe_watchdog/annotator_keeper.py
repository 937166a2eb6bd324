"""The annotator's process: it is told of the watchdog's decisions, started again when it ends, and never waited for.

Who it tells in turn, and how long that takes, is its own affair: what cannot be handed on at once is dropped and
counted.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fdmoe_watchdog import policy
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.messages import Annotated, Happened
from fdmoe_watchdog.metrics import Metrics
from fdmoe_watchdog.process import Child
from fdmoe_watchdog.settings import RecoverySettings
from fdmoe_watchdog.status import Event

# decisions that wait for a process that starts; a recovery has about ten
_WAITING = 64


@dataclass(frozen=True)
class AnnotatorPlan:
    """command: what is run. events: the names of those that it is told of."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    events: frozenset[str]


class AnnotatorKeeper:
    """`tend` is called every turn and waits for nothing; `drop` closes a channel."""

    def __init__(
        self,
        plan: AnnotatorPlan,
        recovery: RecoverySettings,
        events: EventLog,
        metrics: Metrics,
        drop: Callable[[Channel], None],
        now: float,
    ) -> None:
        self.child: Child | None = None
        self._plan = plan
        self._recovery = recovery
        self._events = events
        self._metrics = metrics
        self._drop = drop
        self._waiting: deque[Event] = deque()
        self._restarts: tuple[float, ...] = ()
        self._start_at = now
        events.follow(self._hear)

    def tend(self, now: float) -> None:
        """Start it if it is time to, and tell it what has happened."""
        if self.child is not None and not self.child.alive:
            self._events.add("annotator_exit", level="warning", exit_code=self.child.exit_code or 0)
            self.child = None
            self._retry(now)
        if self.child is None and now >= self._start_at:
            try:
                self.child = Child(self._plan.command, self._plan.environment)
            except OSError as error:
                self._events.add("annotator_not_started", level="error", reason=str(error))
                self._retry(now)
        self.tell()

    def tell(self) -> None:
        """Hand on what waits. A process that does not read is replaced, as everywhere in a tree."""
        child = self.child
        while self._waiting and child is not None and child.channel is not None:
            try:
                child.channel.send(Happened(self._waiting[0]))
            except ChannelClosed as error:
                self._events.add("annotator_deaf", level="warning", pid=child.pid, reason=str(error))
                child.signal(signal.SIGKILL)
                self._drop(child.channel)
                return
            self._waiting.popleft()

    def heard(self, message: Annotated) -> None:
        for result in ("sent", "failed", "dropped"):
            self._metrics.annotations.labels(result).inc(getattr(message, result))

    def _hear(self, event: Event) -> None:
        """In the thread that adds the event."""
        if event["event"] not in self._plan.events:
            return
        if len(self._waiting) >= _WAITING:
            self._metrics.annotations.labels("dropped").inc()
        else:
            self._waiting.append(event)

    def _retry(self, now: float) -> None:
        """As often as a worker may be, and then at the longest pause: it costs nobody anything but its own start."""
        self._restarts = tuple(at for at in self._restarts if at > now - self._recovery.restart_period_s)
        delay = policy.restart_delay_s(self._restarts, now, self._recovery)
        self._start_at = now + (self._recovery.backoff_max_s if delay is None else delay)
        self._restarts = (*self._restarts, now)
