"""The recorded backend: a file of readings (benchmarks/gpu_recording.py) replayed with their timing, for machines
without a GPU.

Every message says `recorded`, and the metrics pass that on, so that no one takes it for a GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fdmoe_watchdog.messages import GpuFigures, GpuReading, GpuSource, XidSeen
from fdmoe_watchdog.probe.backend import Unreadable

FORMAT = 1
_SHIPPED = Path(__file__).parent / "recordings"
H200 = _SHIPPED / "h200.json"


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From `after_s` on these are the figures. `origin` says where they come from."""

    after_s: float
    state: str
    origin: str
    figures: GpuFigures


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`device`: the one that has it, as the probe is asked for it (an index, a UUID); all without."""

    after_s: float
    xid: int
    device: str | None = None


class Recording(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps and Xids in the order of their times. It begins again after `length_s`."""

    format: int
    origin: str
    length_s: float
    steps: tuple[Step, ...]
    xids: tuple[Event, ...] = ()

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format is {self.format}; {FORMAT} is allowed")
        for what, times in (("steps", self.steps), ("xids", self.xids)):
            at = [entry.after_s for entry in times]
            if at != sorted(at) or not all(0 <= after_s < self.length_s for after_s in at):
                raise ValueError(f"{what} have after_s {at}; allowed: rising, from 0 to below {self.length_s:g}")
        if not self.steps or self.steps[0].after_s != 0:
            raise ValueError("steps must begin at after_s 0")

    def step(self, elapsed_s: float) -> Step:
        within = elapsed_s % self.length_s
        return [step for step in self.steps if step.after_s <= within][-1]

    def next_xid(self, device: str, after_s: float) -> tuple[float, int] | None:
        """When the first Xid of this device later than `after_s` comes, and its number."""
        round_s = after_s // self.length_s * self.length_s
        its = [event for event in self.xids if event.device in (None, device)]
        times = [(begin + event.after_s, event.xid) for begin in (round_s, round_s + self.length_s) for event in its]
        return next((found for found in times if found[0] > after_s), None)


def load(path: Path) -> Recording:
    """Raises Unreadable with what is wrong."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Recording)
    except (OSError, ValueError) as error:
        raise Unreadable("bad_recording", f"{path}: {error}") from error


class RecordedBackend:
    source: GpuSource = "recorded"

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock

    def open(self, device: str) -> RecordedDevice:
        return RecordedDevice(device, load(self._path), self._clock)


class RecordedDevice:
    """Its GPUs are called as the recording calls them, with the device behind the UUID: no two have the same."""

    def __init__(self, device: str, recording: Recording, clock: Callable[[], float]) -> None:
        self._device = device
        self._recording = recording
        self._clock = clock
        self._begun = clock()
        self._told_s = -1.0

    def read(self) -> GpuReading:
        begun = self._clock()
        figures = self._recording.step(begun - self._begun).figures
        named = msgspec.structs.replace(figures, uuid=f"{figures.uuid}-{self._device}")
        return GpuReading(self._device, "recorded", round(begun * 1e9), True, (named,))

    def wait_for_xid(self, timeout_s: float) -> XidSeen | None:
        due = self._recording.next_xid(self._device, self._told_s)
        wait_s = timeout_s if due is None else due[0] - (self._clock() - self._begun)
        if due is None or wait_s > timeout_s:
            threading.Event().wait(timeout_s)
            return None
        threading.Event().wait(max(wait_s, 0.0))
        self._told_s, xid = due
        return XidSeen(self._device, "recorded", xid, round((self._begun + due[0]) * 1e9))
