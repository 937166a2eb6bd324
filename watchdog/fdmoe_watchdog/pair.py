"""One device: the holder of its weights and two workers, seen and handled as policy.decide says.

It never waits for a child: every message is sent without blocking, and every process is reaped by looking. A flight
record is taken at the detection and written by a thread; only a kill waits for it, and not for long.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from fdmoe_watchdog import messages, policy
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.ears import Ears
from fdmoe_watchdog.events import BoundEvents, EventLog, Level
from fdmoe_watchdog.flights import FlightRecorder
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.metrics import PHASES, Metrics
from fdmoe_watchdog.own_time import OwnTime
from fdmoe_watchdog.page import GPU_SLOTS
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.probe_keeper import ProbeKeeper
from fdmoe_watchdog.process import Child, HolderProcess, WorkerProcess
from fdmoe_watchdog.recovery import RecoveryClock
from fdmoe_watchdog.spare import SpareKeeper
from fdmoe_watchdog.tracker import StallTimes, Tracker

_SAVE_S = 0.05
_HOLDER_LOOK_S = 0.03
# a process that is killed leaves the stopped state some time before it can be reaped
_RESUMED_S = 1.0
# between an error of the device's memory and the end of the process that met it, as they are told
_SPOILT_NS = 5_000_000_000
_CPU_SLOTS = 16


class Pair:
    """`names` are those of its two workers and its holder, unique in the tree.

    `tell` sends to a child, `tell_gateway` to the gateway, `offer_route` this pair's route to the gateway when it may
    have it; none of them raises. `drop` closes a channel.
    """

    def __init__(
        self,
        device: str,
        names: tuple[str, str, str],
        plan: TreePlan,
        *,
        events: EventLog,
        metrics: Metrics,
        recorder: FlightRecorder,
        ledger: Ledger,
        tell: Callable[[Child | None, messages.Message], None],
        tell_gateway: Callable[[messages.Message], None],
        offer_route: Callable[[Pair], None],
        drop: Callable[[Channel], None],
        now: float,
    ) -> None:
        self.device = device
        self.workers, self.holder_name = names[:2], names[2]
        self.state = policy.initial(self.workers, now)
        self.processes: dict[str, WorkerProcess] = {}
        self.holder: HolderProcess | None = None
        self.route: messages.Route | None = None
        self.ended: policy.GiveUp | None = None
        self._manifest = ""
        self._plan = plan
        self._events = BoundEvents(events, device=device)
        self._metrics = metrics
        self._recorder = recorder
        self._ledger = ledger
        self._tell = tell
        self._tell_gateway = tell_gateway
        self._offer_route = offer_route
        self._drop = drop
        self._ears = Ears(self._events, metrics, recorder, ledger)
        self._stall_times = StallTimes(plan.recovery)
        self._recovery = RecoveryClock()
        self._worker_command = (*plan.worker_command, "--device", device)
        wanted = len(self.workers) if plan.recovery.spare_process else 0
        self.spares = SpareKeeper(self._worker_command, plan.environment, self._events, wanted=wanted)
        self._started_ns = time.monotonic_ns()
        self._own_time = OwnTime(plan.watchdog.poll_interval_s, now)
        self._holder_looked_at = now
        # when a worker that maps the present weights last ended by itself
        self._ended_ns = -2 * _SPOILT_NS
        self._killed_at: dict[str, float] = {}
        # processes that were reaped, and when (CLOCK_MONOTONIC), of which the device may still have memory
        self._reaped: dict[str, tuple[int, int]] = {}

    # ---- one turn

    def turn(self, now: float, lag_s: float, probe: ProbeKeeper | None) -> bool:
        """See, decide, act; whether anything was done. `probe` knows the device, where it can be asked."""
        self._read_pages()
        self._hear_out()
        if recovered := self._recovery.look(self.processes, now):
            self._metrics.recovery.labels(recovered.rung).observe(recovered.seconds)
            self._events.add(
                "recovery", rung=recovered.rung, worker=recovered.worker, seconds=round(recovered.seconds, 4)
            )  # fmt: skip
        workers = {name: self._see(name, probe) for name in self.workers}
        observation = policy.Observation(now, workers, self._see_holder(now, probe), lag_s, self._doom(probe))
        self.state, actions = policy.decide(self.state, observation, self._plan.recovery)
        for action in actions:
            self._act(action, now)
        self.spares.tend(now, quiet=self._is_quiet() and self.ended is None)
        return bool(actions)

    def _is_quiet(self) -> bool:
        """All workers serve, or wait for weights that are being loaded; then a spare is of use as soon as they are."""
        calm = {policy.Life.READY}
        if self.state.holder.life is policy.Life.STARTING:
            calm.add(policy.Life.BACKOFF)
        return all(worker.life in calm for worker in self.state.workers.values())

    def children(self) -> Iterator[Child]:
        """All processes of this device."""
        yield from self._workers_and_holder()
        yield from self.spares.there

    def _workers_and_holder(self) -> Iterator[WorkerProcess | HolderProcess]:
        """The workers first: they map what the holder has."""
        yield from self.processes.values()
        if self.holder is not None:
            yield self.holder

    def end(self) -> None:
        """This device is out: its processes are killed, and nothing of it is listened to any more. Reap it from then
        on, instead of taking turns."""
        for name, process in self.processes.items():
            self._tell_gateway(messages.Fence(name, process.generation, "device_out"))
        for child in self.children():
            child.signal(signal.SIGKILL)
        self.route = None
        gone = {name: replace(worker, life=policy.Life.ABSENT) for name, worker in self.state.workers.items()}
        holder = replace(self.state.holder, life=policy.Life.ABSENT)
        self.state = replace(self.state, active=None, workers=gone, holder=holder)

    def reap(self) -> None:
        for name in [name for name, process in self.processes.items() if not process.alive]:
            generation = self.processes[name].generation
            self._bury(name)
            self._tell_gateway(messages.Gone(name, generation))
        if self.holder is not None and not self.holder.alive:
            self._bury_holder()
        self.spares.reap()

    @property
    def dying(self) -> bool:
        return any(worker.life is policy.Life.DYING for worker in self.state.workers.values())

    @property
    def active(self) -> WorkerProcess | None:
        return self.processes.get(self.state.active) if self.state.active is not None else None

    def _read_pages(self) -> None:
        now = time.monotonic()
        for process in self.processes.values():
            before, known = process.tracker.last, process.page_problem
            snapshot = process.read_page()
            if process.page_problem and not known:
                self._events.add("page_lost", level="error", worker=process.name, reason=process.page_problem)
            if process.page_problem or snapshot is None:
                continue
            process.tracker.read(snapshot, now)
            for phase, items in zip(PHASES, process.tracker.items_since(before), strict=True):
                if items:
                    self._metrics.device_work_items.labels(self.device, phase).inc(items)

    def _hear_out(self) -> None:
        """What those who end said last: it may still wait to be read when their end is seen."""
        for child in list(self._workers_and_holder()):
            channel = child.channel
            # nothing is done yet about one that nobody has heard of: what it says of its end may wait to be accepted
            if channel is None or (not child.ending and child.alive):
                continue
            child.cut_off = child.cut_off or "exit"
            with contextlib.suppress(ChannelClosed):
                while (message := channel.receive()) is not None:
                    self.handle(channel, message)

    def _see(self, name: str, probe: ProbeKeeper | None) -> policy.Seen:
        process = self.processes.get(name)
        if process is not None:
            return process.seen()
        reaped = self._reaped.get(name)
        others = (child.pid for child in self.children())
        memory_back = reaped is None or probe is None or probe.memory_is_back(self.device, *reaped, others)
        if memory_back:
            # what others take from now on says nothing of it
            self._reaped.pop(name, None)
        return policy.Seen(alive=False, memory_back=memory_back)

    def _doom(self, probe: ProbeKeeper | None) -> policy.Condemned | None:
        """What the device itself says: a GPU that must be reset, or a node that must be drained."""
        if probe is None:
            return None
        health = probe.health(self.device, self._started_ns)
        return policy.Condemned(health.reason, health.node_action) if health.state == "fail_closed" else None

    def _see_holder(self, now: float, probe: ProbeKeeper | None) -> policy.HolderSeen:
        holder = self.holder
        self._own_time.turn(now)
        if holder is None:
            return policy.HolderSeen(alive=False)
        if holder.ready is None:
            held_s = holder.held_s(self._own_time.now_s)
        else:
            # one that holds the weights may stand still: nobody waits for it
            held_s = 0.0
            self._tell_of_held(holder, now)
        spoilt = self._is_blamed(holder) or (probe is not None and self._is_spoilt(holder, probe))
        return policy.HolderSeen(
            holder.alive, holder.ready is not None, holder.failed, held_s,
            spoilt=holder.ready is not None and spoilt, cut_off=bool(holder.cut_off),
        )  # fmt: skip

    def _is_blamed(self, holder: HolderProcess) -> bool:
        """Whether a worker over these weights said that they are not what they were: its successor would take what it
        finds there for right."""
        return any(
            process.failed is not None and process.failed[1] == "weights"
            for name, process in self.processes.items()
            if self.state.workers[name].weights == holder.generation
        )

    def _is_spoilt(self, holder: HolderProcess, probe: ProbeKeeper) -> bool:
        """Whether one of our workers ended by itself, over these weights, about when the device told of memory that
        failed: another process's memory may as well have, and is not our affair."""
        if time.monotonic_ns() > self._ended_ns + _SPOILT_NS:
            return False
        since_ns = max(holder.ready_ns, self._ended_ns - _SPOILT_NS)
        return probe.health(self.device, since_ns).state == "reload_weights"

    def _tell_of_held(self, holder: HolderProcess, now: float) -> None:
        if now < self._holder_looked_at + _HOLDER_LOOK_S or self.state.holder.life is policy.Life.DYING:
            return
        self._holder_looked_at = now
        name, generation, pid = holder.name, holder.generation, holder.pid
        if holder.held_s(self._own_time.now_s) > 0:
            if holder.held_until is None:
                self._events.add("weights_stopped", level="warning", holder=name, generation=generation, pid=pid)
            holder.held_until = now
        elif holder.held_until is not None and now >= holder.held_until + _RESUMED_S and holder.alive:
            self._events.add("weights_resumed", holder=name, generation=generation, pid=pid)
            holder.held_until = None

    # ---- messages

    def adopt(self, channel: Channel, hello: messages.Hello) -> bool:
        """Whether the connection is of one of this pair's living generations."""
        child: HolderProcess | WorkerProcess | None
        child = self.holder if hello.role == "weights" else self.processes.get(hello.name)
        if child is None or (child.name, child.generation) != (hello.name, hello.generation):
            return False
        child.channel = channel
        return True

    def owns(self, channel: Channel) -> bool:
        return any(child.channel is channel for child in self.children())

    def handle(self, channel: Channel, message: messages.AnyMessage) -> None:
        """What a child of this pair says. Raises ChannelClosed for what it may not say."""
        if self.holder is not None and self.holder.channel is channel:
            self._ears.hear_holder(self.holder, message)
            return
        process = next(process for process in self.processes.values() if process.channel is channel)
        self._ears.hear(process, message)

    def link_lost(self, message: messages.LinkLost) -> None:
        """The gateway hears no more of a worker, or never did. Of one that is being killed that is no news."""
        process = self.processes.get(message.worker)
        if process is None or process.generation != message.generation:
            return
        if self.state.workers[process.name].life is not policy.Life.DYING:
            self._events.add("link_lost", level="warning", worker=process.name, reason=message.reason)
            process.cut_off = process.cut_off or message.cause

    # ---- the ladder's hands

    def _act(self, action: policy.Action, now: float) -> None:
        match action:
            case policy.StartHolder() | policy.HolderReady() | policy.KillHolder() | policy.HolderGone():
                self._act_on_holder(action)
            case policy.Start(worker=name, generation=generation, reason=reason):
                self._start(name, generation, reason)
            case policy.Abort(worker=name, launch=launch, cause=cause):
                process = self.processes[name]
                process.abort(launch)
                self._metrics.stalls.labels(cause).inc()
                self._metrics.stall_detection.labels(cause).observe(process.tracker.quiet_s)
                self._recovery.start(process, now)
                self._record(process, cause)
            case policy.AbortEnded(worker=name, in_time=in_time):
                self._metrics.aborts.labels("ended" if in_time else "timed_out").inc()
                self._events.add("abort_ended" if in_time else "abort_timed_out", level="warning", worker=name)
            case policy.Fence(worker=name, generation=generation, cause=cause):
                self._fence(name, generation, cause, now)
            case policy.Route(worker=name, generation=generation):
                self._route_to(self.processes[name])
            case policy.Kill(worker=name, generation=generation):
                # the record first; a disk that takes longer than this does not hold up the kill
                self._recorder.wait(_SAVE_S)
                self._events.add("kill", level="warning", worker=name, generation=generation)
                self._killed_at[name] = time.monotonic()
                self.processes[name].signal(signal.SIGKILL)
            case policy.Gone(worker=name, generation=generation):
                self._bury(name)
                self._tell_gateway(messages.Gone(name, generation))
            case policy.SetPath():
                self._set_path(action)
            case policy.BudgetGone(worker=name):
                self._metrics.recovery_failures.labels("restart").inc()
                self._events.add("restart_budget_gone", level="error", worker=name)
            case policy.GiveUp():
                if self.ended is None:
                    self._metrics.recovery_failures.labels("give_up").inc()
                    self.ended = action

    def _act_on_holder(
        self, action: policy.StartHolder | policy.HolderReady | policy.KillHolder | policy.HolderGone
    ) -> None:
        generation = action.generation
        match action:
            case policy.StartHolder(reason=reason):
                self._events.add("weights_start", holder=self.holder_name, generation=generation, reason=reason)
                try:
                    self.holder = self._spawn_holder(generation)
                except OSError as error:
                    self._events.add("weights_not_started", level="error", holder=self.holder_name, reason=str(error))
            case policy.HolderReady():
                assert self.holder is not None
                assert self.holder.ready is not None
                self._manifest = self.holder.ready.manifest
            case policy.KillHolder():
                assert self.holder is not None
                self._events.add("weights_kill", level="warning", holder=self.holder_name, generation=generation)
                self.holder.signal(signal.SIGKILL)
            case policy.HolderGone():
                self._bury_holder()

    def _fence(self, name: str, generation: int, cause: str, now: float) -> None:
        self._events.add("fence", level="warning", worker=name, generation=generation, cause=cause)
        self._tell_gateway(messages.Fence(name, generation, cause))
        process = self.processes.get(name)
        if self.route is not None and (self.route.worker, self.route.generation) == (name, generation):
            self.route = None
            if process is not None:
                self._recovery.hand_over(process, now, reached=cause != "unreachable")
        if cause == "startup" and process is not None and process.failed is not None:
            cause = "failed"  # it was not too slow: it has said why it cannot start
        if cause in ("frozen", "startup"):
            self._metrics.stalls.labels(cause).inc()
        if cause == "frozen" and process is not None and process.ready is not None:
            self._metrics.stall_detection.labels(cause).observe(process.tracker.untouched_s)
        # of a stall there is one already, and new weights are nobody's fault
        if cause in ("frozen", "startup", "failed", "exit", "page", "unreachable") and process is not None:
            self._record(process, cause)
        if cause != policy.NEW_WEIGHTS and process is not None:
            self._recorder.fenced(process)
        if cause == "exit" and self.state.workers[name].weights == self.state.holder.generation:
            self._ended_ns = time.monotonic_ns()

    def _record(self, process: WorkerProcess, cause: str) -> None:
        """The gateway knows which requests are concerned; its answer is appended."""
        self._recorder.record(process, cause, self.device)
        if process.tracker.last is not None:
            self._tell_gateway(messages.AskInFlight(process.name, process.generation, process.tracker.last.begun))

    def _set_path(self, action: policy.SetPath) -> None:
        name, path, previous, reason = action.worker, action.path, action.previous, action.reason
        if path != previous:
            self._metrics.path_switches.labels(previous, path, reason).inc()
            level: Level = "warning" if path == "baseline" else "info"
            self._events.add(
                "path_switch", level=level, worker=name, reason=reason, **{"from": previous, "to": path}
            )  # fmt: skip
        elif action.buckets is not None and reason == "proven":
            self._events.add("buckets_proven", worker=name, buckets=" ".join(map(str, action.buckets)))
        if name:
            self._tell(self.processes[name], messages.SetPath(path, action.buckets))

    def _start(self, name: str, generation: int, reason: str) -> None:
        if reason != policy.FIRST_START:
            self._metrics.worker_restarts.labels(reason).inc()
        try:
            self.processes[name] = self._spawn(name, generation)
            spare = self.processes[name].by_spare
            self._events.add("worker_start", worker=name, generation=generation, reason=reason, spare=spare)
        except OSError as error:
            # no process, no memory, no file descriptor: to the policy a worker that ended at once
            self._events.add("worker_not_started", level="error", worker=name, reason=str(error))

    def _spawn(self, name: str, generation: int) -> WorkerProcess:
        plan = self._plan
        return WorkerProcess(
            name,
            generation,
            command=self._worker_command,
            environment=plan.environment,
            weights=self._manifest,
            run_dir=plan.run_dir,
            slots=_CPU_SLOTS if self.device.startswith("cpu") else GPU_SLOTS,
            tracker=Tracker(self._stall_times, plan.watchdog.poll_interval_s),
            take_spare=self.spares.take,
        )

    def _spawn_holder(self, generation: int) -> HolderProcess:
        plan = self._plan
        return HolderProcess(
            self.holder_name,
            generation,
            command=(*plan.weights_command, "--device", self.device),
            environment=plan.environment,
            run_dir=plan.run_dir,
        )

    def _bury(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        self._reaped[name] = (process.pid, time.monotonic_ns())
        killed_at = self._killed_at.pop(name, None)
        if killed_at is not None:
            self._metrics.recovery.labels("kill").observe(time.monotonic() - killed_at)
        if process.channel is not None:
            self._drop(process.channel)
        self._recorder.reaped(process)
        self._ledger.background.submit(lambda: self._ledger.went(name))
        self._events.add(
            "worker_gone", level="warning", worker=name, generation=process.generation, exit_code=process.exit_code or 0
        )  # fmt: skip
        process.discard()

    def _bury_holder(self) -> None:
        holder, self.holder = self.holder, None
        if holder is None:
            return
        if holder.channel is not None:
            self._drop(holder.channel)
        self._events.add(
            "weights_gone", level="error", holder=holder.name, generation=holder.generation,
            exit_code=holder.exit_code or 0,
        )  # fmt: skip
        holder.discard()

    def _route_to(self, process: WorkerProcess) -> None:
        self.route = messages.Route(
            process.name, process.generation, str(process.socket_path), str(process.page.path), self.device
        )
        self._recovery.routed(process)
        self._events.add("route", worker=process.name, generation=process.generation)
        self._offer_route(self)
