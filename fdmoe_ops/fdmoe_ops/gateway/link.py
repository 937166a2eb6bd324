"""The gateway's connections: orders come from the watchdog, batches go to the active worker, answers come back.

All in the event loop's thread; nothing here blocks, and nothing is decided here (see batcher).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from fdmoe_ops.gateway.batcher import Batcher, Departure, Key, Outcome
from fdmoe_ops.gateway.metrics import Metrics
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.messages import LayerInfo
from fdmoe_watchdog.page import Line, PageError, PageFile

if TYPE_CHECKING:
    from fdmoe_ops.gateway.traces import Traces

_RETRY_S = 0.05
_BEAT_S = 0.5
# what this process is short of: no other worker could be reached either
_SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(slots=True, eq=False)
class WorkerLink:
    """The connection to one worker generation, and its beat page, where what was sent to it is counted. `greeted`: the
    worker has said that it is ready."""

    key: Key
    device: str
    channel: Channel
    page: PageFile
    greeted: bool = False

    def send(self, batch: messages.Batch) -> None:
        """Raises ChannelClosed, and PageError or OSError for a page that is damaged: either way it is of no use."""
        # counted first: a batch that is sent and not counted could be lost unseen, the reverse only looks untouched
        self.page.add(Line.GATEWAY, 0)
        self.channel.send(batch)

    def is_at_work(self) -> bool:
        """As far as its page can be read: what runs there has deadlines of its own, which are the watchdog's."""
        try:
            return self.page.snapshot().path_runs
        except (PageError, OSError):
            return False


class Links:
    """`layers` and `max_batch_tokens` are what the last active worker serves; nothing until there was one.

    `route_deadline_s` is for a worker that is routed to, until it is connected, and from then on until its first word.
    `on_end` is called when the watchdog's connection closes, and when this process can reach nobody.
    """

    def __init__(
        self,
        batcher: Batcher,
        metrics: Metrics,
        traces: Traces | None,
        control: Channel,
        route_deadline_s: float,
        on_end: Callable[[], None],
    ) -> None:
        self.layers: dict[str, LayerInfo] = {}
        self.max_batch_tokens = 0
        self._batcher = batcher
        self._metrics = metrics
        self._traces = traces
        self._control = control
        # what is counted are tries and looks: in a pause of this machine, or of this process, nobody is late
        self._most_tries = max(1, round(route_deadline_s / _RETRY_S))
        self._route_deadline_s = route_deadline_s
        self._on_end = on_end
        self._links: dict[Key, WorkerLink] = {}
        self._wanted: dict[str, messages.Route] = {}  # by device
        self._dropped_answers = 0
        self._push_planned = False
        self._log = structlog.get_logger("fdmoe.gateway")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control.fileno(), self._on_control)
        self._beat()

    @property
    def started(self) -> bool:
        """A worker has been routed to, and was ready."""
        return bool(self.layers)

    @property
    def ready(self) -> bool:
        """A worker of some device is active and connected."""
        return bool(self._batcher.active)

    def push_soon(self) -> None:
        """Push once all requests that came in this turn of the loop are queued: they go together.

        A packet that wakes a sleeping worker was measured at up to 70 us; a small request's own work is 45 us.
        """
        if not self._push_planned:
            self._push_planned = True
            self._loop.call_soon(self.push)

    def push(self) -> None:
        """Send as many batches as there are, and workers free for them."""
        self._push_planned = False
        while (departure := self._batcher.next_batch(time.monotonic())) is not None:
            link = self._links[departure.key]
            self._metrics.batch_tokens.observe(departure.tokens)
            if self._traces is not None:
                self._traces.sent(departure)
            try:
                link.send(departure.batch)
            except (ChannelClosed, PageError, OSError) as error:
                self._lost(link, error)
            if departure.replayed:
                self._replayed(departure)

    def close(self) -> None:
        self._next_beat.cancel()
        for link in list(self._links.values()):
            self._close(link)
        self._loop.remove_reader(self._control.fileno())
        self._control.close()

    # ---- the watchdog

    def _beat(self) -> None:
        metrics = self._metrics
        traffic = metrics.traffic.take(time.monotonic(), metrics.requests_in_flight, self._batcher.queue_depth)
        # a watchdog that is held up itself does not read; it needs no old beats when it goes on
        with contextlib.suppress(ChannelClosed):
            self._control.send(messages.GatewayBeat(traffic))
        self._next_beat = self._loop.call_later(_BEAT_S, self._beat)

    def _on_control(self) -> None:
        try:
            message = self._control.receive()
            match message:
                case messages.Route():
                    self._route(message)
                case messages.Fence(worker=worker, generation=generation, cause=cause):
                    self._unwant(Key(worker, generation))
                    again = self._fence(Key(worker, generation), cause)
                    self._log.info(
                        "fence", worker=worker, generation=generation, cause=cause, requests_again=again,
                        requests=self._batcher.in_hand(Key(worker, generation)).names,
                    )  # fmt: skip
                case messages.AskInFlight(worker=worker, generation=generation, launch=launch):
                    total, names = self._batcher.in_hand(Key(worker, generation))
                    # a watchdog that is held up itself does not read: its record then says nothing of requests
                    with contextlib.suppress(ChannelClosed):
                        self._control.send(messages.InFlight(worker, generation, launch, total, names))
                case messages.Gone(worker=worker, generation=generation):
                    self._gone(Key(worker, generation))
                case None:
                    pass
                case _:
                    raise ChannelClosed(f"a {type(message).__name__} is not for the gateway")
        except ChannelClosed as error:
            self._log.info("watchdog_left", reason=str(error))
            self._loop.remove_reader(self._control.fileno())
            self._on_end()

    def _route(self, route: messages.Route) -> None:
        """Connect. The worker becomes active when it says what it serves."""
        if Key(route.worker, route.generation) in self._links:
            return
        self._batcher.deactivate(route.device)
        self._wanted[route.device] = route
        self._connect(route, 1)

    def _connect(self, route: messages.Route, tries: int) -> None:
        """`tries`: of this route, with this one."""
        key = Key(route.worker, route.generation)
        hello = messages.Hello(messages.PROTOCOL, "gateway", route.worker, route.generation, os.getpid())
        try:
            page = PageFile.open(Path(route.page))
        except (OSError, PageError) as error:
            self._not_connected(route, tries, error)
            return
        try:
            channel = Channel.connect(Path(route.socket), hello)
        except OSError as error:
            page.close()
            self._not_connected(route, tries, error)
            return
        link = self._links[key] = WorkerLink(key, route.device, channel, page)
        self._loop.add_reader(channel.fileno(), self._on_worker, link)
        self._loop.call_later(_RETRY_S, self._look_for_word, link, route, 1)

    def _not_connected(self, route: messages.Route, tries: int, error: Exception) -> None:
        """As long as no other route comes, this one is tried again, until its deadline. A worker is not to blame for
        what this process is short of: the next process gets a route. While another device serves, that can wait."""
        self._log.warning("no_route_yet", worker=route.worker, generation=route.generation, reason=str(error))
        late = tries >= self._most_tries
        ours = isinstance(error, OSError) and error.errno in _SHORT_OF
        if late and ours and not self.ready:
            self._log.error("no_route", worker=route.worker, generation=route.generation, reason=str(error))
            self._on_end()
            return
        if late and not ours:
            reason = f"no connection within {self._route_deadline_s:g} s: {error}"
            if self._unreachable(route, reason):
                return
        self._loop.call_later(_RETRY_S, self._connect_again, route, tries + 1)

    def _connect_again(self, route: messages.Route, tries: int) -> None:
        if self._wanted.get(route.device) is route:
            self._connect(route, tries)

    def _look_for_word(self, link: WorkerLink, route: messages.Route, looks: int) -> None:
        """Whether it has said its first word, until the deadline. A worker that another gateway's batch keeps busy has
        longer."""
        if looks >= self._most_tries and self._awaits_word(link, route):
            # it may be here, and not read yet
            self._on_worker(link)
        if not self._awaits_word(link, route):
            return
        if looks >= self._most_tries:
            reason = f"connected, and no word within {self._route_deadline_s:g} s"
            if not link.is_at_work() and self._unreachable(route, reason):
                return
            looks = 0
        self._loop.call_later(_RETRY_S, self._look_for_word, link, route, looks + 1)

    def _awaits_word(self, link: WorkerLink, route: messages.Route) -> bool:
        wanted = self._wanted.get(link.device) is route and self._links.get(link.key) is link
        return wanted and not link.greeted

    def _unreachable(self, route: messages.Route, reason: str) -> bool:
        """Rung 2 ends here: the watchdog kills the worker and routes to the next. False if it cannot be told now."""
        key = Key(route.worker, route.generation)
        try:
            self._control.send(messages.LinkLost(key.worker, key.generation, reason, "unreachable"))
        except ChannelClosed:
            return False
        self._unwant(key)
        if key in self._links:
            self._close(self._links[key])
        self._fence(key, "unreachable")
        self._log.error("no_route", worker=key.worker, generation=key.generation, reason=reason)
        return True

    def _gone(self, key: Key) -> None:
        self._unwant(key)
        link = self._links.get(key)
        if link is not None:
            self._close(link)
        if self._traces is not None:
            self._traces.fenced(key, "gone")
        self._batcher.gone(key)
        self.push()

    def _unwant(self, key: Key) -> None:
        for device, route in list(self._wanted.items()):
            if Key(route.worker, route.generation) == key:
                del self._wanted[device]

    # ---- a worker

    def _on_worker(self, link: WorkerLink) -> None:
        try:
            message = link.channel.receive()
            match message:
                case messages.Answer():
                    self._answered(link, message)
                case messages.WorkerReady():
                    self._worker_ready(link, message)
                case None:
                    pass
                case _:
                    raise ChannelClosed(f"a {type(message).__name__} is not for the gateway")
        except ChannelClosed as error:
            self._lost(link, error)

    def _answered(self, link: WorkerLink, answer: messages.Answer) -> None:
        requests = self._batcher.answered(link.key, answer, time.monotonic())
        if self._traces is not None and requests is not None:
            self._traces.answered(link.key, answer)
        # the worker gets its next batch before the clients get their answers
        self.push()
        if requests is None:
            self._dropped_answers += 1
            self._log.warning(
                "answer_dropped", worker=link.key.worker, link_generation=link.key.generation,
                generation=answer.generation, batch=answer.batch, dropped=self._dropped_answers,
            )  # fmt: skip
            return
        if answer.error:
            self._log.error(
                "batch_failed", worker=link.key.worker, generation=answer.generation, batch=answer.batch,
                reason=answer.error, requests=[request.id for request in requests[: messages.MAX_NAMED_REQUESTS]],
            )  # fmt: skip
        outcome = Outcome(link.key, answer)
        for request in requests:
            request.deliver(outcome)

    def _worker_ready(self, link: WorkerLink, ready: messages.WorkerReady) -> None:
        if ready.generation != link.key.generation:
            raise ChannelClosed(f"generation {ready.generation} answers; {link.key.generation} was routed to")
        link.greeted = True
        if self._batcher.activate(link.key, link.device, ready.max_batch_tokens):
            self.layers = {layer.name: layer for layer in ready.layers}
            self.max_batch_tokens = ready.max_batch_tokens
            self._log.info("active", worker=link.key.worker, generation=link.key.generation)
            self.push()

    def _lost(self, link: WorkerLink, error: Exception) -> None:
        """Its batch waits for the next route. The watchdog is told, for a worker may live whose connection does not."""
        self._close(link)
        with contextlib.suppress(ChannelClosed):
            self._control.send(messages.LinkLost(link.key.worker, link.key.generation, str(error)))
        again = self._fence(link.key, "link_lost")
        self._log.warning(
            "worker_left", worker=link.key.worker, generation=link.key.generation, reason=str(error),
            requests_again=again, requests=self._batcher.in_hand(link.key).names if again else (),
        )  # fmt: skip

    def _fence(self, key: Key, cause: str) -> int:
        if self._traces is not None:
            self._traces.fenced(key, cause)
        return self._batcher.fence(key)

    def _replayed(self, departure: Departure) -> None:
        self._metrics.replayed_requests.inc(departure.replayed)
        again = [request.id for request in departure.requests if request.replayed]
        self._log.warning(
            "replayed_requests", worker=departure.key.worker, generation=departure.key.generation,
            batch=departure.batch.batch, layer=departure.batch.layer, count=departure.replayed,
            requests=again[: messages.MAX_NAMED_REQUESTS],
        )  # fmt: skip

    def _close(self, link: WorkerLink) -> None:
        del self._links[link.key]
        self._loop.remove_reader(link.channel.fileno())
        link.channel.close()
        link.page.close()
