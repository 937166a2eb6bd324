"""A watchdog that has a probe and nothing else: the real keeper, the real socket, the real process."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.connections import Connections
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.gpu_view import GpuView
from fdmoe_watchdog.messages import GpuFailed, GpuReading, Hello, XidSeen
from fdmoe_watchdog.probe_keeper import ProbeKeeper, ProbePlan
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings

WATCHDOG = WatchdogSettings(gpu_interval_s=0.1, gpu_deadline_s=0.4)
RECOVERY = RecoverySettings(backoff_initial_s=0.01, backoff_max_s=0.02, restart_budget=3)


@dataclass(frozen=True)
class FakePlan(ProbePlan):
    """The probe's own process over a scripted libnvidia-ml."""

    script: str = "{}"

    def command(self, interval_s: float) -> tuple[str, ...]:
        launch = "import fake_nvml; fake_nvml.main()"
        _, _, _, module, *flags = super().command(interval_s)
        assert module == "fdmoe_watchdog.probe"
        return (sys.executable, "-P", "-c", launch, self.script, "--retry-s", "0.2", *flags)


class Watchdog:
    """Turns until a condition holds, as the supervisor does."""

    def __init__(self, plan: ProbePlan, recovery: RecoverySettings = RECOVERY) -> None:
        self.events = EventLog()
        self._connections = Connections(plan.run_dir / "watchdog.sock", self.events)
        self.keeper = ProbeKeeper(plan, WATCHDOG, recovery, self.events, time.monotonic())
        self.heard: list[GpuReading | GpuFailed | XidSeen] = []

    def turn(self) -> None:
        for channel, message in self._connections.wait(0.01):
            child = self.keeper.child
            match message:
                case Hello(role="probe", pid=pid) if child is not None and child.pid == pid:
                    child.channel = channel
                case GpuReading() | GpuFailed() | XidSeen() if child is not None and child.channel is channel:
                    self.keeper.heard(message)
                    self.heard.append(message)
                case ChannelClosed() if child is not None and child.channel is channel:
                    child.channel = None
        self.keeper.tend(time.monotonic())

    def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not in time; events: {self.events.last}"
            self.turn()

    @property
    def view(self) -> GpuView:
        (view,) = self.keeper.view()
        return view

    def named(self, event: str) -> list[dict[str, Any]]:
        """The events of this name, without their times."""
        return [
            {key: value for key, value in found.items() if key not in ("at", "event")}
            for found in self.events.last
            if found["event"] == event
        ]

    def close(self) -> None:
        if self.keeper.child is not None:
            self.keeper.child.signal(signal.SIGKILL)
            assert self.keeper.child.wait(10)
        self._connections.close()
