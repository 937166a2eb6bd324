"""The NVML probe's process: started, judged by its silence, replaced within a budget. Serving does not depend on it."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fdmoe_watchdog import log, policy, xid
from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.events import EventLog, Level
from fdmoe_watchdog.gpu_view import GpuView, holds_memory
from fdmoe_watchdog.messages import GpuFailed, GpuReading, XidSeen
from fdmoe_watchdog.own_time import OwnTime
from fdmoe_watchdog.process import Child
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings

# nvmlInit wakes each GPU that no process holds, some seconds for each
_FIRST_DEADLINES = 6
# less than a CUDA context takes, with torch 612 MiB on an H200
_CONTEXT_BYTES = 128 * 2**20
# a process that ends may have given its memory back by the last reading before it can be reaped
_BEFORE_S = 5.0
_USED_READINGS = 64
_LEVELS: dict[xid.XidClass, Level] = {
    xid.XidClass.IGNORE: "info",
    xid.XidClass.APPLICATION: "warning",
    xid.XidClass.RELOAD_WEIGHTS: "warning",
}


@dataclass(frozen=True)
class ProbePlan:
    """devices: what NVML is asked for (an index, or the UUID of a GPU or a MIG instance), by the device's name in
    metrics and status. recorded: a file to replay instead of asking NVML. log_format, log_level: of its log lines.
    chaos: a reading may be told to block."""

    devices: Mapping[str, str]
    run_dir: Path
    environment: Mapping[str, str]
    recorded: Path | None = None
    log_format: log.Format = "console"
    log_level: log.Level = "info"
    chaos: bool = False

    def command(self, interval_s: float) -> tuple[str, ...]:
        recorded = () if self.recorded is None else ("--recorded", str(self.recorded))
        return (
            *(sys.executable, "-P", "-m", "fdmoe_watchdog.probe"),
            *("--run-dir", str(self.run_dir), "--interval-s", str(interval_s)),
            *("--log-format", self.log_format, "--log-level", self.log_level),
            *recorded,
            *(("--chaos",) if self.chaos else ()),
            *("--device", *self.devices.values()),
        )


@dataclass
class _Device:
    """`silent_s`: since the last word about it. `heard`: whether this process has ever said one. `pids`: of all
    processes that were ever seen on it; `names_ours`: ours were among them. `used`: when a reading began, and the bytes
    that were taken then, of the last readings. `unknown_told`: that nobody can say what a process gave back was told.
    """

    name: str
    silent_s: float = 0.0
    heard: bool = False
    reading: GpuReading | None = None
    failure: str = ""
    xids_watched: bool = False
    # the last of each number: a storm of one cannot push another out
    xids: dict[int, XidSeen] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    last_xid_at: float | None = None
    pids: set[int] = field(default_factory=set)
    names_ours: bool = False
    used: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=_USED_READINGS))
    unknown_told: bool = False


class ProbeKeeper:
    """`tend` is called every turn and waits for nothing. A probe that cannot be kept only blinds the metrics."""

    def __init__(
        self,
        plan: ProbePlan,
        watchdog: WatchdogSettings,
        recovery: RecoverySettings,
        events: EventLog,
        now: float,
        wall: Callable[[], float] = time.time,
    ) -> None:
        assert len(set(plan.devices.values())) == len(plan.devices), f"two devices are the same: {plan.devices}"
        self.child: Child | None = None
        self._plan = plan
        self._command = plan.command(watchdog.gpu_interval_s)
        self._interval_s = watchdog.gpu_interval_s
        self._deadline_s = watchdog.gpu_deadline_s
        self._recovery = recovery
        self._events = events
        self._wall = wall
        self._devices = {asked: _Device(name) for name, asked in plan.devices.items()}
        self._restarts: tuple[float, ...] = ()
        self._start_at = now
        self._own_time = OwnTime(watchdog.poll_interval_s, now)
        self._killed = False
        self._down = "it has not been started yet"

    # ---- the process

    def tend(self, now: float) -> None:
        """Start it if it is time to, and end it if it says nothing of a device any more."""
        elapsed = self._own_time.turn(now)
        if self.child is not None and not self.child.alive:
            self._ended(self.child.exit_code or 0, now)
        if self.child is not None and not self._killed:
            self._judge(self.child, elapsed)
        if self.child is None and now >= self._start_at:
            self._start(now)

    def _judge(self, child: Child, elapsed: float) -> None:
        for device in self._devices.values():
            device.silent_s += elapsed
            if device.silent_s > self._deadline_s * (1 if device.heard else _FIRST_DEADLINES):
                self._down = f"it said nothing of {device.name} in its deadline"
                self._events.add(
                    "probe_silent", level="error", device=device.name, pid=child.pid, silent_s=round(device.silent_s, 3)
                )
                # one that is blocked in the driver may take for ever to end; a second one would block there too
                self._killed = True
                child.signal(signal.SIGKILL)
                return

    def _ended(self, exit_code: int, now: float) -> None:
        if not self._killed:
            self._down = f"it ended with exit code {exit_code}"
            self._events.add("probe_exit", level="warning", exit_code=exit_code)
        self.child, self._killed = None, False
        self._retry(now)

    def _start(self, now: float) -> None:
        try:
            self.child = Child(self._command, self._plan.environment)
        except OSError as error:
            self._down = f"it could not be started: {error}"
            self._events.add("probe_not_started", level="error", reason=str(error))
            self._retry(now)
            return
        for device in self._devices.values():
            device.silent_s, device.heard = 0.0, False

    def _retry(self, now: float) -> None:
        """Within the same budget as workers; when it is gone, once the oldest restart has left the period."""
        period_s = self._recovery.restart_period_s
        self._restarts = tuple(at for at in self._restarts if at > now - period_s)
        delay = policy.restart_delay_s(self._restarts, now, self._recovery)
        if delay is None:
            self._start_at = self._restarts[0] + period_s if self._restarts else math.inf
            self._events.add("probe_budget_gone", level="error", reason=self._down)
        else:
            self._start_at = now + delay
        self._restarts = (*self._restarts, self._start_at)

    # ---- what it says

    def heard(self, message: GpuReading | GpuFailed | XidSeen) -> None:
        """Raises ChannelClosed for a device that it was not asked about."""
        device = self._devices.get(message.device)
        if device is None:
            raise ChannelClosed(f"nobody asked about device {message.device}")
        match message:
            case GpuReading():
                self._readable(device, message)
            case GpuFailed():
                self._unreadable(device, message)
            case XidSeen():
                self._xid(device, message)

    def _readable(self, device: _Device, reading: GpuReading) -> None:
        if device.failure or not device.heard:
            self._events.add("gpu_readable", device=device.name, source=reading.source, gpus=len(reading.gpus))
        device.reading, device.failure = reading, ""
        device.pids.update(process.pid for gpu in reading.gpus for process in gpu.processes or ())
        used = [gpu.memory_used_bytes for gpu in reading.gpus]
        if reading.source == "nvml" and None not in used:
            device.used.append((reading.begun_ns, sum(size or 0 for size in used)))
        device.silent_s, device.heard = 0.0, True
        device.xids_watched = reading.xids_watched
        if reading.xids_watched:
            for known in xid.LABELS:
                device.counts[known] += 0

    def _unreadable(self, device: _Device, failed: GpuFailed) -> None:
        if failed.reason != device.failure:
            self._events.add(
                "gpu_unreadable", level="error", device=device.name, trouble=failed.trouble, reason=failed.reason
            )
        device.failure = failed.reason
        device.silent_s, device.heard = 0.0, True

    def _xid(self, device: _Device, seen: XidSeen) -> None:
        device.counts[xid.label(seen.xid)] += 1
        device.last_xid_at = self._wall() - (time.monotonic_ns() - seen.at_ns) / 1e9
        if seen.xid not in xid.XIDS:
            self._events.add("gpu_xid", level="warning", device=device.name, xid=seen.xid, meaning="not in our table")
            return
        device.xids[seen.xid] = seen
        entry = xid.XIDS[seen.xid]
        self._events.add(
            "gpu_xid", level=_LEVELS.get(entry.kind, "error"), device=device.name, xid=seen.xid, meaning=entry.meaning,
            follows=entry.kind.value,
        )  # fmt: skip

    # ---- what follows from it

    def reading(self, name: str) -> GpuReading | None:
        """The last one of the device of this name, however old."""
        return self._by_name(name).reading

    def health(self, name: str, since_ns: int) -> xid.Health:
        """Of the device of this name; `since_ns` as in fdmoe_watchdog.xid.verdict."""
        device = self._by_name(name)
        return xid.verdict((device.reading,) if device.reading else (), device.xids.values(), since_ns)

    def memory_is_back(self, name: str, pid: int, reaped_ns: int, others: Iterable[int] = ()) -> bool:
        """Whether nothing of a process that was reaped then is left on the device; True where nobody can say. Where the
        device can be read, the next reading is waited for. `others`: processes of ours that are alive.

        In a container the driver may call our processes by their numbers outside, or name none: what is taken on the
        device must then have become less, by a part of a context. Others may take it meanwhile, so that this is waited
        for, and no sign of a device that must be reset.
        """
        device = self._by_name(name)
        if self.child is None or self._killed or not device.heard or device.failure:
            return True
        reading = device.reading
        if reading is None or reading.begun_ns <= reaped_ns:
            return False
        device.names_ours = device.names_ours or not device.pids.isdisjoint((pid, *others))
        if device.names_ours:
            return not holds_memory(reading, pid, reaped_ns)
        freed = _freed_bytes(device.used, reaped_ns, max(_BEFORE_S, 2 * self._interval_s))
        if freed is not None and freed >= _CONTEXT_BYTES:
            return True
        patience_ns = self._recovery.reclaim_deadline_s / 2 * 1e9
        if freed is not None and time.monotonic_ns() < reaped_ns + patience_ns:
            return False
        if not device.unknown_told:
            device.unknown_told = True
            self._events.add("memory_unknown", level="warning", device=device.name, pid=pid)
        return True

    def view(self) -> tuple[GpuView, ...]:
        return tuple(self._view(device) for device in self._devices.values())

    def _view(self, device: _Device) -> GpuView:
        if self.child is None or self._killed:
            reason = f"the probe is down: {self._down}"
        elif not device.heard:
            reason = "the probe has not read it yet"
        else:
            reason = device.failure
        return GpuView(
            device=device.name,
            collecting=not reason,
            reason=reason,
            source="nvml" if self._plan.recorded is None else "recorded",
            xids_watched=device.xids_watched and not reason,
            xids=dict(device.counts),
            last_xid_at=device.last_xid_at,
            gpus=device.reading.gpus if device.reading and not reason else (),
        )

    def _by_name(self, name: str) -> _Device:
        return self._devices[self._plan.devices[name]]


def _freed_bytes(used: Iterable[tuple[int, int]], reaped_ns: int, before_s: float) -> int | None:
    """How much less is taken by the last reading than at most in so many seconds before a process was reaped; None
    where one of the two was not read."""
    before = [size for begun_ns, size in used if reaped_ns - before_s * 1e9 < begun_ns <= reaped_ns]
    after = [size for begun_ns, size in used if begun_ns > reaped_ns]
    return max(before) - after[-1] if before and after else None
