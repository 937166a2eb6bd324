"""The watchdog: parent of the tree, and its one loop, in the main thread: messages, then the devices, then the view."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import time
from collections.abc import Iterator

from fdmoe_watchdog import messages
from fdmoe_watchdog.annotator_keeper import AnnotatorKeeper
from fdmoe_watchdog.background import Background
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.chaos import Chaos
from fdmoe_watchdog.connections import Connections
from fdmoe_watchdog.count_metrics import CountLines
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.flights import FlightRecorder
from fdmoe_watchdog.gateway import GatewayKeeper
from fdmoe_watchdog.http import HttpServer
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.messages import AnyMessage
from fdmoe_watchdog.metrics import Metrics
from fdmoe_watchdog.pair import Pair
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.policy import Ending
from fdmoe_watchdog.probe_keeper import ProbeKeeper
from fdmoe_watchdog.process import Child, WorkerProcess
from fdmoe_watchdog.rundir import RunDirectory
from fdmoe_watchdog.status import TreeView
from fdmoe_watchdog.status_page.history import History
from fdmoe_watchdog.status_page.live import Photographer
from fdmoe_watchdog.view import look

EXIT_OK = 0
EXIT_SETTINGS = 2  # nothing here can serve these settings or this checkpoint
EXIT_RESTART_ME = 70  # the tree failed; another try on this node may work
EXIT_NODE = 71  # do not restart me here: the node must be looked at first
_EXITS = {Ending.SETTINGS: EXIT_SETTINGS, Ending.RESTART_ME: EXIT_RESTART_ME, Ending.NODE: EXIT_NODE}
# beyond its own limit for draining, the gateway has this long to end
_GATEWAY_END_S = 2.0
_STOP_CHILDREN_S = 3.0
_REAP_S = 10.0
_VIEW_S = 0.05
_SWITCH_S = 0.0005


def names_of(index: int, count: int) -> tuple[str, str, str]:
    """The names of a device's two workers and of its weights' holder, unique in a tree of `count` devices."""
    suffix = str(index) if count > 1 else ""
    return f"a{suffix}", f"b{suffix}", f"weights{suffix}"


class Supervisor:
    """One tree. `run` returns its exit code when it is told to stop or gives up."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan
        self._started = time.monotonic()
        self._turned_at = self._started
        self._events = EventLog()
        self._ledger = Ledger(
            lambda worker, reason: self._events.add("counts_lost", level="error", worker=worker, reason=reason)
        )
        self._gateway = GatewayKeeper(plan, self._events, self._started)
        self._probe = (
            ProbeKeeper(plan.probe, plan.watchdog, plan.recovery, self._events, self._started) if plan.probe else None
        )
        self.metrics = Metrics(lambda: self._view, self._ledger, plan.version, plan.devices)
        self._events.follow(self.metrics.happened)
        self._recorder = FlightRecorder(plan, self._events, self.metrics.flight_records.inc)
        self._annotator = (
            AnnotatorKeeper(plan.annotator, plan.recovery, self._events, self.metrics, self._drop, self._started)
            if plan.annotator
            else None
        )
        self._pairs = tuple(
            Pair(
                device,
                names_of(index, len(plan.devices)),
                plan,
                events=self._events,
                metrics=self.metrics,
                recorder=self._recorder,
                ledger=self._ledger,
                tell=self._tell,
                tell_gateway=lambda message: self._tell(self._gateway.child, message),
                offer_route=lambda pair: self._offer_route(pair, new=True),
                drop=self._drop,
                now=self._started,
            )
            for index, device in enumerate(plan.devices)
        )
        self._out: set[str] = set()
        self._announced = False
        self._chaos = Chaos(self._events, self._tell, plan.recovery)
        self._stop_at: float | None = None
        self._linger_until: float | None = None
        self._exit_after_linger = EXIT_NODE
        self._exit: int | None = None
        self._history = History(self._started)
        self._photographer = Photographer()
        self._show(self._started)

    # ---- life of the tree

    def run(self) -> int:
        # a turn of the loop must not wait for the interpreter until a scrape's thread has had its default 5 ms
        sys.setswitchinterval(_SWITCH_S)
        run_dir = RunDirectory(self.plan.run_dir)
        run_dir.claim()
        try:
            run_dir.reserve("arena", self.plan.arena_bytes)
            self.plan.prepare(self.plan.run_dir)
            return self._serve()
        finally:
            run_dir.release()

    def _serve(self) -> int:
        settings = self.plan.watchdog
        lines = CountLines(self._ledger, experts=settings.expert_series)
        scrape = Exposition(self.metrics.registry, lines.text)
        http = HttpServer(settings.host, settings.port, scrape, lambda: self._view, lambda: self._live, self._turns)
        self._http_url = http.url
        with self._stop_signals():
            self._connections = Connections(self.plan.run_dir / "watchdog.sock", self._events)
            http.start()
            # what stays is not looked through again: a full collection would hold up a turn or a scrape by tens of
            # milliseconds
            gc.collect()
            gc.freeze()
            try:
                while self._exit is None:
                    self._turn()
                # the last decision, for those who look while the children end
                self._show(time.monotonic())
                if self._annotator is not None:
                    self._annotator.tell()
            finally:
                self._stop_children()
                http.stop()
                self._connections.close()
        return self._exit

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        """The first signal drains, the second ends at once."""

        def stop(_number: int, _frame: object) -> None:
            if self._stop_at is not None and self._exit is None:
                self._exit = EXIT_OK
            self._stop_at = self._stop_at or time.monotonic() + self.plan.drain_s + _GATEWAY_END_S

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _turns(self) -> bool:
        return time.monotonic() - self._turned_at < 5.0

    def _children(self) -> list[Child]:
        kept = self._named_children().values()
        of_pairs = (child for pair in self._pairs for child in pair.children())
        return [*(child for child in kept if child), *self._gateway.spares.there, *of_pairs]

    def _stop_children(self) -> None:
        """Asked first, then killed. The probe is not asked: it may sit in a call of the driver that never returns."""
        if self._probe is not None and self._probe.child is not None:
            self._probe.child.signal(signal.SIGKILL)
        for number, patience_s in ((signal.SIGTERM, _STOP_CHILDREN_S), (signal.SIGKILL, _REAP_S)):
            deadline = time.monotonic() + patience_s
            children = [child for child in self._children() if child.alive]
            for child in children:
                child.signal(number)
            for child in children:
                child.wait(deadline - time.monotonic())

    # ---- one turn

    def _turn(self) -> None:
        interval = self.plan.watchdog.poll_interval_s
        for channel, message in self._connections.wait(interval):
            self._receive(channel, message)
        now = time.monotonic()
        # from turn to turn, so that the time for decisions, records and log lines counts
        lag_s = max(0.0, now - self._turned_at - interval)
        self.metrics.loop_lag.observe(lag_s)
        self._turned_at = now
        self._drain(now)
        self._gateway.tend(now)
        if self._gateway.spent and self._linger_until is None:
            self.metrics.recovery_failures.labels("restart").inc()
            self.metrics.recovery_failures.labels("give_up").inc()
            self._give_up("the gateway ends again and again and the restart budget is gone", Ending.RESTART_ME)
        if self._probe is not None:
            self._probe.tend(now)
        if self._annotator is not None:
            self._annotator.tend(now)
        acted = False
        for pair in self._pairs:
            if pair.device in self._out:
                pair.reap()
            else:
                acted |= pair.turn(now, lag_s, self._probe)
        self._leave_out_what_ended()
        if self._linger_until is not None and (self._stop_at is not None or now >= self._linger_until):
            self._exit = self._exit_after_linger
        for pair in self._pairs:
            self._offer_route(pair, new=False)
        # a view takes as long as the rest of a turn, and nobody reads it 200 times a second
        if acted or now - self._viewed_at >= _VIEW_S:
            self._show(now)

    def _drain(self, now: float) -> None:
        """Told to stop: the gateway finishes what it has, while the ladder goes on, for a worker may fail meanwhile."""
        if self._stop_at is None or self._linger_until is not None:
            return
        if not self._gateway.draining:
            self._events.add("drain", deadline_s=self.plan.drain_s)
            self._gateway.drain()
        if self._gateway.child is None or now >= self._stop_at:
            self._exit = EXIT_OK

    def _leave_out_what_ended(self) -> None:
        """A device that gives up is left out and its processes are ended; the tree ends with the last one."""
        for pair in self._pairs:
            ended = pair.ended
            if ended is None or pair.device in self._out:
                continue
            self._out.add(pair.device)
            if len(self._out) == len(self._pairs):
                # where one device may come back with another start, the node is worth it
                endings = {other.ended.ending for other in self._pairs if other.ended is not None}
                helps = ended.ending is Ending.NODE and Ending.RESTART_ME in endings
                ending = Ending.RESTART_ME if helps else ended.ending
                self._give_up(ended.reason, ending, ended.node_action if ending is Ending.NODE else "")
                return
            self._events.add(
                "device_out", level="error", device=pair.device, reason=ended.reason, node_action=ended.node_action
            )  # fmt: skip
            pair.end()

    # ---- messages

    def _receive(self, channel: Channel, message: AnyMessage | ChannelClosed) -> None:
        if isinstance(message, ChannelClosed):
            self._forget(channel)
            return
        try:
            self._handle(channel, message)
        except ChannelClosed as error:
            self._events.add("refused_message", level="warning", reason=str(error))
            self._drop(channel)

    def _drop(self, channel: Channel) -> None:
        self._connections.drop(channel)
        self._forget(channel)

    def _forget(self, channel: Channel) -> None:
        for child in self._children():
            if child.channel is channel:
                child.channel = None
                if isinstance(child, WorkerProcess):
                    # it is ending; with a CUDA context, some tenths of a second before it can be reaped
                    child.cut_off = child.cut_off or "exit"

    def _handle(self, channel: Channel, message: AnyMessage) -> None:
        match message:
            case messages.Hello(role="gateway") if self._gateway.child is not None:
                self._gateway.child.channel = channel
                self._gateway.connected()
            case messages.Hello(role="worker" | "weights", name=name, generation=generation):
                if not any(pair.adopt(channel, message) for pair in self._pairs):
                    raise ChannelClosed(f"{name} generation {generation} is not expected")
            case messages.Hello(role="probe", pid=pid):
                probe = self._probe.child if self._probe else None
                if probe is None or probe.pid != pid:
                    raise ChannelClosed(f"no probe of pid {pid} is expected")
                probe.channel = channel
            case messages.Hello(role="annotator", pid=pid):
                annotator = self._annotator.child if self._annotator else None
                if annotator is None or annotator.pid != pid:
                    raise ChannelClosed(f"no annotator of pid {pid} is expected")
                annotator.channel = channel
            case messages.Hello():
                pass
            case messages.GpuReading() | messages.GpuFailed() | messages.XidSeen():
                if self._probe is None or self._probe.child is None or self._probe.child.channel is not channel:
                    raise ChannelClosed("a probe's message from somebody who is no probe")
                self._probe.heard(message)
            case messages.Annotated():
                annotator = self._annotator.child if self._annotator else None
                if self._annotator is None or annotator is None or annotator.channel is not channel:
                    raise ChannelClosed("an annotator's message from somebody who is none")
                self._annotator.heard(message)
            case messages.Listening(host=host, port=port):
                self._gateway.listening(host, port)
                self._announce()
            case messages.GatewayBeat(traffic=traffic):
                self._gateway.beat(traffic)
            case messages.InFlight():
                if self._gateway.child is None or self._gateway.child.channel is not channel:
                    raise ChannelClosed("word of requests in flight from somebody who is no gateway")
                self._recorder.in_flight(message)
            case messages.LinkLost():
                for pair in self._pairs:
                    pair.link_lost(message)
            case messages.FaultArmed():
                self._chaos.armed(message)
            case messages.StatusRequest():
                channel.send(messages.StatusReply(self._look().to_json()))
            case messages.ChaosRequest(fault=fault) if self.plan.chaos:
                self._chaos.request(channel, fault, self._pairs, self._named_children())
            case messages.ChaosRequest():
                channel.send(messages.ChaosReply(False, "chaos is off in this tree; start it with --enable-chaos"))
            case _:
                owner = next((pair for pair in self._pairs if pair.owns(channel)), None)
                if owner is None:
                    raise ChannelClosed(f"a {type(message).__name__} from somebody who may not send it")
                owner.handle(channel, message)

    def _named_children(self) -> dict[str, Child | None]:
        keepers = {"gateway": self._gateway, "probe": self._probe, "annotator": self._annotator}
        return {name: keeper.child if keeper else None for name, keeper in keepers.items()}

    def _tell(self, child: Child | None, message: messages.Message) -> None:
        if child is None or child.channel is None:
            return
        try:
            child.channel.send(message)
        except ChannelClosed as error:
            self._events.add(
                "message_lost", level="warning", message=type(message).__name__, pid=child.pid, reason=str(error)
            )  # fmt: skip
            self._drop(child.channel)

    def _offer_route(self, pair: Pair, *, new: bool) -> None:
        dying = any(other.dying for other in self._pairs)
        if pair.route is not None and self._gateway.wants_route(pair.device, new=new, dying=dying):
            self._tell(self._gateway.child, pair.route)
        self._announce()

    def _announce(self) -> None:
        if self._announced:
            return
        gateway, watchdog = self._gateway.view.url, self._http_url
        if gateway and any(pair.route is not None for pair in self._pairs):
            self._announced = True
            # standard output may be held, too
            Background("watchdog-announcement").submit(lambda: self.plan.announce(gateway, watchdog))

    def _give_up(self, reason: str, ending: Ending, node_action: str = "") -> None:
        self._events.add("give_up", level="error", reason=reason, exit_code=_EXITS[ending], node_action=node_action)
        if ending is Ending.SETTINGS:
            self._exit = EXIT_SETTINGS
            return
        # nothing can be served here: the loop turns on without workers and gateway, so that it is seen why
        self._exit_after_linger = _EXITS[ending]
        self._out.update(pair.device for pair in self._pairs)
        for pair in self._pairs:
            pair.end()
        self._gateway.drain()
        self._linger_until = time.monotonic() + self.plan.watchdog.give_up_linger_s

    def _show(self, now: float) -> None:
        """New views for whoever looks, in whatever thread."""
        self._view, self._viewed_at = self._look(), now
        self._history.tend(now, time.time(), self._gateway.traffic(), self._pairs, self._view.gpus)
        self._live = self._photographer.take(self._view, self._pairs, self._history, self._recorder.view, now)

    def _look(self) -> TreeView:
        return look(
            self.plan,
            self._pairs,
            uptime_s=time.monotonic() - self._started,
            now=time.monotonic(),
            draining=self._stop_at is not None,
            gateway=self._gateway.view,
            gpus=self._probe.view() if self._probe else (),
            events=self._events.last,
            last_flight=self._recorder.last,
        )


def run(plan: TreePlan) -> int:
    """Run one tree until SIGTERM, SIGINT or the end of all rungs; returns the process's exit code.

    Raises RunDirectoryError when the run directory is not to be had, OSError when a port is not.
    """
    return Supervisor(plan).run()
