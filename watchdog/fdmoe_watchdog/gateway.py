"""The gateway's process: started, started again when it ends, and told where batches go."""

from __future__ import annotations

import signal
from collections import deque

from fdmoe_watchdog import policy
from fdmoe_watchdog.events import BoundEvents, EventLog
from fdmoe_watchdog.messages import Traffic
from fdmoe_watchdog.own_time import OwnTime
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.process import Child
from fdmoe_watchdog.spare import SpareKeeper
from fdmoe_watchdog.status import GatewayView

# half a minute of reports: a watchdog that was stopped for longer tells of no more
_REPORTS = 60
# a gateway says hello within two seconds of its start; one that has lost its connection ends by itself
_FIRST_WORDS_S = 30.0


class GatewayKeeper:
    """`tend` is called every turn. `spent` says that the restart budget is gone. `spares`: a process that has imported
    everything, for the next one; connections are broken until it listens."""

    def __init__(self, plan: TreePlan, events: EventLog, now: float) -> None:
        self.child: Child | None = None
        self.spent = False
        self._plan = plan
        self._events = events
        self.spares = SpareKeeper(
            plan.gateway_command,
            plan.environment,
            BoundEvents(events, device="gateway"),
            wanted=1 if plan.recovery.spare_process else 0,
        )
        self._url = ""
        self._restarts: tuple[float, ...] = ()
        self._start_at = now
        self._knows: set[str] = set()
        self._own_time = OwnTime(plan.watchdog.poll_interval_s, now)
        self._silent_s = 0.0
        self._traffic: deque[Traffic] = deque(maxlen=_REPORTS)
        self.draining = False

    @property
    def view(self) -> GatewayView:
        return GatewayView(self._url, self.child.pid if self.child else 0, self.spares.views)

    def tend(self, now: float) -> None:
        """Start it if it is time to, and end it if it says nothing any more. While it drains it is left to end."""
        settings, child = self._plan.recovery, self.child
        self._silent_s += self._own_time.turn(now)
        if child is not None:
            silent_after_s = _FIRST_WORDS_S if child.channel is None else settings.answer_deadline_s
            # its beats are half a second apart: their silence says nothing, and it is looked at each time
            held = child.held_s(self._own_time.now_s) >= settings.stopped_deadline_s
            if held or self._silent_s > silent_after_s:
                self._events.add("gateway_frozen", level="error", pid=child.pid, silent_s=round(self._silent_s, 3))
                self._silent_s = 0.0
                child.signal(signal.SIGKILL)
        if self.child is not None and not self.child.alive:
            self._events.add("gateway_exit", level="warning", exit_code=self.child.exit_code or 0)
            self.child = None
            self._url = ""
            if not self.draining:
                self._retry(now)
        if self.child is None and not self.spent and not self.draining and now >= self._start_at:
            spare = self.spares.take()
            process = spare.become(()) if spare is not None else None
            try:
                self.child = Child(self._plan.gateway_command, self._plan.environment, process=process)
                self._silent_s = 0.0
            except OSError as error:
                self._events.add("gateway_not_started", level="error", reason=str(error))
                self._retry(now)

        self.spares.tend(now, quiet=bool(self._url) and not self.draining)

    def connected(self) -> None:
        """A gateway process has said hello: it knows nothing yet."""
        self._knows.clear()
        self._silent_s = 0.0

    def drain(self) -> None:
        """It is to finish what it has and to end; none is started after it."""
        self.draining = True
        for spare in self.spares.there:
            spare.signal(signal.SIGKILL)
        if self.child is not None:
            self.child.signal(signal.SIGTERM)

    def beat(self, traffic: Traffic | None) -> None:
        self._silent_s = 0.0
        if traffic is not None:
            self._traffic.append(traffic)

    def traffic(self) -> tuple[Traffic, ...]:
        """What it has reported since the last call."""
        reported = tuple(self._traffic)
        self._traffic.clear()
        return reported

    def listening(self, host: str, port: int) -> None:
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._events.add("gateway_listening", url=self._url)

    def wants_route(self, device: str, *, new: bool, dying: bool) -> bool:
        """Whether it is to be told the device's route now. A new gateway hands out the arena anew and knows of no
        fenced worker that may still write to it: it gets its first routes when no worker is dying."""
        if self.child is None or self.child.channel is None:
            return False
        if device in self._knows:
            return new
        if dying:
            return False
        self._knows.add(device)
        return True

    def _retry(self, now: float) -> None:
        delay = policy.restart_delay_s(self._restarts, now, self._plan.recovery)
        if delay is None:
            self.spent = True
            return
        self._restarts = (*self._restarts, now)
        self._start_at = now + delay
