"""A process of a device that has everything imported and waits to be told which worker it is to be.

To import torch's CUDA build takes 4 of the 6 seconds that a worker needs to start. A spare has done it before it is
needed, and has neither a page nor a CUDA context yet: it costs some hundred megabytes of the host's memory, and nothing
on the device.
"""

from __future__ import annotations

from collections.abc import Mapping

from fdmoe_watchdog.events import BoundEvents
from fdmoe_watchdog.process import Spare
from fdmoe_watchdog.status import SpareView

# one that ends by itself would do so again
_PAUSE_S = 60.0


class SpareKeeper:
    """Keeps one spare, if `wanted` by the settings."""

    def __init__(
        self, command: tuple[str, ...], environment: Mapping[str, str], events: BoundEvents, *, wanted: bool
    ) -> None:
        self.child: Spare | None = None
        self._command = command
        self._environment = environment
        self._events = events
        self._wanted = wanted
        self._not_before = 0.0

    @property
    def view(self) -> SpareView:
        if self.child is None:
            return SpareView(state="absent" if self._wanted else "off")
        return SpareView(self.child.pid, "ready" if self.child.ready else "starting")

    def tend(self, now: float, *, whole: bool) -> None:
        """`whole`: both workers serve, so that a start is in nobody's way."""
        if self.child is not None and not self.child.alive:
            self._events.add("spare_gone", level="warning", exit_code=self.child.exit_code or 0)
            self.child.discard()
            self.child, self._not_before = None, now + _PAUSE_S
        if self.child is None and self._wanted and whole and now >= self._not_before:
            try:
                self.child = Spare(self._command, self._environment)
            except OSError as error:
                self._events.add("spare_not_started", level="warning", reason=str(error))
                self._not_before = now + _PAUSE_S

    def reap(self) -> None:
        """One that was killed, and is not to be replaced."""
        if self.child is not None and not self.child.alive:
            self.child.discard()
            self.child = None

    def take(self) -> Spare | None:
        """The spare, which is the caller's from now on; None if there is none that lives."""
        spare = self.child
        if spare is None or not spare.alive:
            return None
        self.child = None
        return spare
