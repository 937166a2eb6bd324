"""The watchdog: parent of the tree, reader of the pages, hand of the policy. One loop, in the main thread.

Rung by rung it carries out what policy.decide says. It never waits for a child: every message is sent without blocking,
and every process is reaped by looking. A flight record is taken at the detection and written by a thread; only a kill
waits for it, and not for long.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from fdmoe_watchdog import flight, messages, policy
from fdmoe_watchdog.background import Background
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.connections import Connections
from fdmoe_watchdog.events import EventLog, Level
from fdmoe_watchdog.gateway import GatewayKeeper
from fdmoe_watchdog.http import HttpServer
from fdmoe_watchdog.messages import AnyMessage
from fdmoe_watchdog.metrics import PHASES, Metrics
from fdmoe_watchdog.page import Line
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.process import Child, WorkerProcess
from fdmoe_watchdog.recovery import RecoveryClock
from fdmoe_watchdog.rundir import RunDirectory
from fdmoe_watchdog.status import TreeView
from fdmoe_watchdog.tracker import StallTimes, Tracker
from fdmoe_watchdog.view import look

WORKERS = ("a", "b")
EXIT_OK = 0
EXIT_SETTINGS = 2  # nothing here can serve these settings or this checkpoint
EXIT_RESTART_ME = 70  # the tree failed; another try on this node may work
_STOP_GATEWAY_S = 10.0
_STOP_WORKER_S = 3.0
_SAVE_S = 0.05
_VIEW_S = 0.05
# one slot per CTA: up to four on each multiprocessor of the largest GPU that is sold
_SLOTS = {"cpu": 16}
_GPU_SLOTS = 768


class Supervisor:
    """One tree. `run` returns its exit code when it is told to stop or gives up."""

    def __init__(self, plan: TreePlan) -> None:
        self.plan = plan
        self._started = time.monotonic()
        self._turned_at = self._started
        self._events = EventLog()
        self._state = policy.initial(WORKERS, self._started)
        self._processes: dict[str, WorkerProcess] = {}
        self._stall_times = StallTimes(plan.recovery)
        self._gateway = GatewayKeeper(plan, self._events, self._started)
        self._route: messages.Route | None = None
        self._announced = False
        self._recovery = RecoveryClock()
        self._last_flight: Path | None = None
        self._disk = Background("watchdog-disk")
        self._flight_saved = threading.Event()
        self._flight_saved.set()
        self._chaos_askers: list[Channel] = []
        self._exit: int | None = None
        self._view, self._viewed_at = self._look(), self._started
        self.metrics = Metrics(lambda: self._view, plan.version)

    # ---- life of the tree

    def run(self) -> int:
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
        http = HttpServer(settings.host, settings.port, self.metrics.registry, lambda: self._view, self._turns)
        self._http_url = http.url
        with self._stop_signals():
            self._connections = Connections(self.plan.run_dir / "watchdog.sock", self._events)
            http.start()
            try:
                while self._exit is None:
                    self._turn()
            finally:
                self._stop_children()
                http.stop()
                self._connections.close()
                self._events.close()
        return self._exit

    @contextlib.contextmanager
    def _stop_signals(self) -> Iterator[None]:
        def stop(_number: int, _frame: object) -> None:
            self._exit = EXIT_OK

        previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _turns(self) -> bool:
        return time.monotonic() - self._turned_at < 5.0

    def _children(self) -> list[Child]:
        gateway = self._gateway.child
        return [*([gateway] if gateway else []), *self._processes.values()]

    def _stop_children(self) -> None:
        """The gateway first, so that it can finish what is in flight; then the workers; then whoever is left."""
        if self._gateway.child is not None:
            self._gateway.child.signal(signal.SIGTERM)
            self._gateway.child.wait(_STOP_GATEWAY_S)
        for number, patience_s in ((signal.SIGTERM, _STOP_WORKER_S), (signal.SIGKILL, _STOP_GATEWAY_S)):
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
        self.metrics.loop_lag.observe(max(0.0, now - self._turned_at - interval))
        self._turned_at = now
        self._gateway.tend(now)
        if self._gateway.spent:
            self._give_up("the gateway ends again and again and the restart budget is gone")
        self._read_workers()
        seen = {}
        for name in WORKERS:
            process = self._processes.get(name)
            if process is None:
                seen[name] = policy.Seen(alive=False)
                continue
            shadow, process.shadow = tuple(process.shadow), []
            ready = process.ready
            seen[name] = process.tracker.seen(
                alive=process.alive,
                ready=ready is not None,
                shadow=shadow,
                fused=ready is not None and ready.fused,
                cut_off=process.cut_off,
            )
        if recovered := self._recovery.look(self._processes, now):
            self.metrics.recovery.labels(recovered.rung).observe(recovered.seconds)
            self._events.add(
                "recovered", rung=recovered.rung, worker=recovered.worker, seconds=round(recovered.seconds, 4)
            )  # fmt: skip
        self._state, actions = policy.decide(self._state, policy.Observation(now, seen), self.plan.recovery)
        for action in actions:
            self._act(action, now)
        self._tell_route(new=False)
        # a view takes as long as the rest of a turn, and nobody reads it 200 times a second
        if actions or now - self._viewed_at >= _VIEW_S:
            self._view, self._viewed_at = self._look(), now

    def _read_workers(self) -> None:
        now = time.monotonic()
        for process in self._processes.values():
            before = process.tracker.last
            process.tracker.read(process.page.snapshot(), now)
            for phase, items in zip(PHASES, process.tracker.items_since(before), strict=True):
                if items:
                    self.metrics.device_work_items.labels(phase).inc(items)

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

    def _handle(self, channel: Channel, message: AnyMessage) -> None:
        match message:
            case messages.Hello(role="gateway") if self._gateway.child is not None:
                self._gateway.child.channel = channel
                self._gateway.connected(time.monotonic())
            case messages.Hello(role="worker", name=name, generation=generation):
                process = self._processes.get(name)
                if process is None or process.generation != generation:
                    raise ChannelClosed(f"worker {name} generation {generation} is not expected")
                process.channel = channel
            case messages.Hello():
                pass
            case messages.Listening(host=host, port=port):
                self._gateway.listening(host, port)
                self._announce()
            case messages.GatewayBeat():
                self._gateway.beat(time.monotonic())
            case messages.LinkLost():
                self._link_lost(message)
            case messages.WorkerReady():
                process = self._worker_of(channel)
                process.ready = message
                self._events.add(
                    "worker_ready", level="info" if message.fused else "error", worker=process.name,
                    generation=process.generation, fused=message.fused,
                )  # fmt: skip
            case messages.ChildFailed(reason=reason, blame=blame):
                process = self._worker_of(channel)
                self._events.add(
                    "worker_failed", level="error", worker=process.name, generation=process.generation, reason=reason
                )  # fmt: skip
                # it is about to end by itself, and that may take longer than its requests can wait
                process.signal(signal.SIGKILL)
                if blame == "settings" and self._state.active is None:
                    self._give_up(reason, EXIT_SETTINGS)
            case messages.ShadowChecked():
                self._shadow_checked(self._worker_of(channel), message)
            case messages.FaultArmed(ok=ok, reason=reason):
                for asker in self._chaos_askers:
                    with contextlib.suppress(ChannelClosed):
                        asker.send(messages.ChaosReply(ok, reason))
                self._chaos_askers.clear()
            case messages.StatusRequest():
                channel.send(messages.StatusReply(self._look().to_json()))
            case messages.ChaosRequest(fault=fault):
                self._ask_for_fault(channel, fault)
            case _:
                raise ChannelClosed(f"a {type(message).__name__} is not for the watchdog")

    def _worker_of(self, channel: Channel) -> WorkerProcess:
        for process in self._processes.values():
            if process.channel is channel:
                return process
        raise ChannelClosed("a worker's message from somebody who is no worker")

    def _link_lost(self, message: messages.LinkLost) -> None:
        """The gateway hears no more of a worker. Of one that is being killed that is no news."""
        process = self._processes.get(message.worker)
        if process is None or process.generation != message.generation:
            return
        if self._state.workers[process.name].life is not policy.Life.DYING:
            self._events.add("link_lost", level="warning", worker=process.name, reason=message.reason)
            process.cut_off = True

    def _shadow_checked(self, process: WorkerProcess, message: messages.ShadowChecked) -> None:
        process.shadow.append(message.ok)
        # a histogram's sum that has met a NaN stays one for ever
        self.metrics.shadow_error.observe(message.relative_error if math.isfinite(message.relative_error) else math.inf)
        self.metrics.shadow_checks.labels("ok" if message.ok else "mismatch").inc()
        if not message.ok:
            self._events.add(
                "shadow_mismatch", level="warning", worker=process.name, layer=message.layer, tokens=message.tokens,
                relative_error=message.relative_error,
            )  # fmt: skip

    def _ask_for_fault(self, channel: Channel, fault: messages.Fault) -> None:
        refusal = None
        if not self.plan.chaos:
            refusal = "chaos is off in this tree; start it with --enable-chaos"
        elif self._state.active is None or self._state.path != "fused":
            refusal = f"the path is {self._state.path if self._state.active else 'down'}; a fault needs the fused path"
        if refusal is not None:
            channel.send(messages.ChaosReply(False, refusal))
            return
        assert self._state.active is not None
        self._chaos_askers.append(channel)
        self._events.add("fault_armed", worker=self._state.active, fault=fault)
        self._tell(self._processes[self._state.active], messages.ArmFault(fault))

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

    # ---- the ladder's hands

    def _act(self, action: policy.Action, now: float) -> None:
        match action:
            case policy.Start(worker=name, generation=generation, reason=reason):
                self._start(name, generation, reason)
            case policy.Abort(worker=name, launch=launch, cause=cause):
                process = self._processes[name]
                process.page.write(Line.ABORT, 0, launch)
                self.metrics.stalls.labels(cause).inc()
                self.metrics.stall_detection.observe(process.tracker.quiet_s)
                self._recovery.start(process, now)
                self._record(process, cause)
            case policy.AbortEnded(worker=name, in_time=in_time):
                self.metrics.aborts.labels("ended" if in_time else "timed_out").inc()
                self._events.add("abort_ended" if in_time else "abort_timed_out", level="warning", worker=name)
            case policy.Fence(worker=name, generation=generation, cause=cause):
                self._events.add("fence", level="warning", worker=name, generation=generation, cause=cause)
                self._tell(self._gateway.child, messages.Fence(name, generation))
                if self._route is not None and (self._route.worker, self._route.generation) == (name, generation):
                    self._route = None
                    self._recovery.hand_over(self._processes[name], now)
                if cause in ("frozen", "startup"):
                    self.metrics.stalls.labels(cause).inc()
                    self._record(self._processes[name], cause)
            case policy.Route(worker=name, generation=generation):
                self._route_to(self._processes[name])
            case policy.Kill(worker=name, generation=generation):
                # the record first; a disk that takes longer than this does not hold up the kill
                self._flight_saved.wait(_SAVE_S)
                self._events.add("kill", level="warning", worker=name, generation=generation)
                self._processes[name].signal(signal.SIGKILL)
            case policy.Gone(worker=name, generation=generation):
                self._bury(name)
                self._tell(self._gateway.child, messages.Gone(name, generation))
            case policy.SetPath(worker=name, path=path, previous=previous, reason=reason):
                if path != previous:
                    self.metrics.path_switches.labels(previous, path, reason).inc()
                    level: Level = "warning" if path == "baseline" else "info"
                    self._events.add("path", level=level, worker=name, previous=previous, path=path, reason=reason)
                if name:
                    self._tell(self._processes[name], messages.SetPath(path))
            case policy.BudgetGone(worker=name):
                self._events.add("restart_budget_gone", level="error", worker=name)
            case policy.GiveUp(reason=reason):
                self._give_up(reason)

    def _start(self, name: str, generation: int, reason: str) -> None:
        if reason != policy.FIRST_START:
            self.metrics.worker_restarts.labels(reason).inc()
        self._events.add("worker_start", worker=name, generation=generation, reason=reason)
        try:
            self._processes[name] = self._spawn(name, generation)
        except OSError as error:
            # no process, no memory, no file descriptor: to the policy a worker that ended at once
            self._events.add("worker_not_started", level="error", worker=name, reason=str(error))

    def _spawn(self, name: str, generation: int) -> WorkerProcess:
        plan = self.plan
        return WorkerProcess(
            name,
            generation,
            command=plan.worker_command,
            environment=plan.environment,
            run_dir=plan.run_dir,
            slots=_SLOTS.get(plan.device, _GPU_SLOTS),
            tracker=Tracker(self._stall_times, plan.watchdog.poll_interval_s),
        )

    def _bury(self, name: str) -> None:
        process = self._processes.pop(name, None)
        if process is None:
            return
        if process.channel is not None:
            self._drop(process.channel)
        self._events.add(
            "worker_gone", level="warning", worker=name, generation=process.generation, exit_code=process.exit_code or 0
        )  # fmt: skip
        process.discard()

    def _route_to(self, process: WorkerProcess) -> None:
        self._route = messages.Route(
            process.name, process.generation, str(process.socket_path), str(process.page.path)
        )  # fmt: skip
        self._recovery.routed(process)
        self._events.add("route", worker=process.name, generation=process.generation)
        self._tell_route(new=True)
        self._announce()

    def _tell_route(self, *, new: bool) -> None:
        dying = any(worker.life is policy.Life.DYING for worker in self._state.workers.values())
        if self._route is not None and self._gateway.wants_route(new=new, dying=dying):
            self._tell(self._gateway.child, self._route)

    def _announce(self) -> None:
        gateway, watchdog = self._gateway.view.url, self._http_url
        if not self._announced and self._route is not None and gateway:
            self._announced = True
            self._events.background.submit(lambda: self.plan.announce(gateway, watchdog))

    def _record(self, process: WorkerProcess, cause: str) -> None:
        snapshot = process.tracker.last
        assert snapshot is not None
        document = flight.record(
            snapshot,
            worker=process.name,
            cause=cause,
            quiet_s=process.tracker.quiet_s,
            now_ns=time.monotonic_ns(),
            at=datetime.now(UTC),
        )
        self._events.add(
            "stall",
            level="warning",
            worker=process.name,
            generation=process.generation,
            cause=cause,
            launch=snapshot.begun,
            quiet_s=round(process.tracker.quiet_s, 4),
            begun_s_ago=float(str(document["begun_s_ago"])),
            verdict=str(document["verdict"]),
        )
        self._flight_saved = self._disk.submit(lambda: self._save(document))

    def _save(self, document: dict[str, object]) -> None:
        """In the background: a full or hanging disk must not stop a recovery."""
        try:
            self._last_flight = flight.save(self.plan.flight_dir, document)
        except OSError as error:
            self._events.add(
                "flight_record_lost", level="error", directory=str(self.plan.flight_dir), reason=str(error)
            )  # fmt: skip

    def _give_up(self, reason: str, code: int = EXIT_RESTART_ME) -> None:
        self._events.add("give_up", level="error", reason=reason)
        self._exit = code

    def _look(self) -> TreeView:
        return look(
            self.plan,
            self._state,
            self._processes,
            uptime_s=time.monotonic() - self._started,
            now=time.monotonic(),
            gateway=self._gateway.view,
            events=self._events.last,
            last_flight=self._last_flight,
        )


def run(plan: TreePlan) -> int:
    """Run one tree until SIGTERM, SIGINT or the end of all rungs; returns the process's exit code.

    Raises RunDirectoryError when the run directory is not to be had, OSError when a port is not.
    """
    return Supervisor(plan).run()
