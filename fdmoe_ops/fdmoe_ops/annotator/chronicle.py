"""From the watchdog's events to annotations: pure, so that the same history gives the same annotations.

One event is one annotation at the event's own time. Some are told further by later events: the baseline's time ends
when the fused path is back, a fence when another worker takes over, a stall when its flight record is on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from fdmoe_watchdog.policy import FIRST_START
from fdmoe_watchdog.status import Event

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# the watchdog's words for why, as the end of a sentence; a word that is not here is told as it is
_REASONS = {
    "slow": "it has become slow, and the baseline has not",
    "stall": "its kernel made no progress",
    "frozen": "its process did not move",
    "startup": "it did not get ready",
    "exit": "its process ended or was cut off",
    "page": "its beat page was damaged",
    "unreachable": "the gateway could not reach it",
    "weights": "there are new weights",
    "mismatch": "a comparison with the baseline differed",
    "unproven": "the fused path of this worker is not proven",
    "budget": "no restart is left, and so no standby",
}
_RUNGS = {"abort": "its kernel was ended", "replay": "it was given the batches of another"}


@dataclass(frozen=True)
class Annotation:
    """`key` stays when the annotation changes. Times are Unix times in ms; without `end_ms` it is a moment."""

    key: int
    time_ms: int
    end_ms: int | None
    tags: tuple[str, ...]
    text: str


class Chronicle:
    """`host` is told in each annotation: several trees may write into one Grafana."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._keys = 0
        # those that may still be told further, and where they are found: by device, and by worker
        self._told: dict[int, Annotation] = {}
        self._on_baseline: dict[str, int] = {}
        self._fenced: dict[str, dict[str, int]] = {}
        self._failed: dict[str, tuple[int, int]] = {}

    def tell(self, event: Event) -> Annotation | None:
        """The annotation that the event makes or changes, if any."""
        teller = _TELLERS.get(str(event["event"]))
        annotation = teller(self, event) if teller is not None else None
        fenced = [key for workers in self._fenced.values() for key in workers.values()]
        kept = {*self._on_baseline.values(), *fenced, *(key for _, key in self._failed.values())}
        self._told = {key: told for key, told in self._told.items() if key in kept}
        return annotation

    # ---- one kind of event each

    def _stall(self, event: Event) -> Annotation:
        reason = str(event["cause"])
        return self._failing(event, f"worker {event['worker']} stalled: {_because(reason)}. {event['verdict']}", reason)

    def _fence(self, event: Event) -> Annotation:
        reason, worker = str(event["cause"]), str(event["worker"])
        text = f"worker {worker} (generation {event['generation']}) is fenced: {_because(reason)}."
        fenced = self._failing(event, text, reason)
        self._fenced.setdefault(_device(event), {})[worker] = fenced.key
        return fenced

    def _route(self, event: Event) -> Annotation | None:
        fenced = self._fenced.pop(_device(event), {})
        key = next((key for worker, key in fenced.items() if worker != event["worker"]), 0)
        if key == 0:
            return None
        now_ms = _time_ms(event)
        seconds = (now_ms - self._told[key].time_ms) / 1000
        return self._further(key, f"Worker {event['worker']} took over after {seconds:g} s.", now_ms)

    def _path_switch(self, event: Event) -> Annotation | None:
        device, path, reason = _device(event), event["to"], str(event["reason"])
        key = self._on_baseline.get(device)
        if key is None:
            if path == "shadow":
                return None
            if path == "fused":  # whoever told of the fall-back is gone
                return self._new(event, "the fused path serves again.", reason)
            told = self._new(event, f"the baseline serves in the place of the fused path: {_because(reason)}.", reason)
            self._on_baseline[device] = told.key
            return told
        now_ms = _time_ms(event)
        after = f"After {(now_ms - self._told[key].time_ms) / 1000:g} s"
        if path == "fused":
            del self._on_baseline[device]
            return self._further(key, f"{after} the fused path serves again.", now_ms)
        if path == "shadow":
            return self._further(key, f"{after} the fused path is compared with it.")
        return self._further(key, f"{after} the comparisons end: {_because(reason)}.")

    def _recovery(self, event: Event) -> Annotation:
        rung, seconds = str(event["rung"]), float(event["seconds"])
        text = f"answers again after {seconds:g} s: worker {event['worker']}, {_RUNGS.get(rung, rung)}."
        lasted = self._new(event, text, rung)
        return replace(lasted, time_ms=lasted.time_ms - round(seconds * 1000), end_ms=lasted.time_ms)

    def _start(self, event: Event) -> Annotation | None:
        reason = str(event["reason"])
        # whoever is active from now on does not take over from this one any more
        self._fenced.get(_device(event), {}).pop(str(event.get("worker", "")), None)
        if reason == FIRST_START:
            return None
        who = f"worker {event['worker']}" if "worker" in event else f"the holder {event['holder']}"
        text = f"{who} is started again (generation {event['generation']}): {_because(reason)}."
        return self._new(event, text, reason)

    def _budget_gone(self, event: Event) -> Annotation:
        return self._new(event, f"no restart is left for {event['worker']}: the baseline serves from now on.")

    def _flight_record(self, event: Event) -> Annotation | None:
        generation, key = self._failed.get(str(event["worker"]), (0, 0))
        return self._further(key, f"Flight record: {event['file']}") if generation == event["generation"] else None

    def _device_out(self, event: Event) -> Annotation:
        return self._new(event, f"the device is left out: {event['reason']}.{_node_action(event)}")

    def _give_up(self, event: Event) -> Annotation:
        text = f"the tree ends with exit code {event['exit_code']}: {event['reason']}.{_node_action(event)}"
        return self._new(event, text)

    # ---- what is told

    def _new(self, event: Event, text: str, reason: str = "") -> Annotation:
        self._keys += 1
        device = _device(event)
        named = {"host": self._host, "device": device, "event": str(event["event"]), "reason": reason}
        tags = ("fdmoe", *(f"{name}:{value}" for name, value in named.items() if value))
        where = f"{self._host}, {device}" if device else self._host
        self._told[self._keys] = Annotation(self._keys, _time_ms(event), None, tags, f"{where}: {text}")
        return self._told[self._keys]

    def _failing(self, event: Event, text: str, reason: str) -> Annotation:
        """Of a worker's generation, of which a flight record may follow."""
        told = self._new(event, text, reason)
        self._failed[str(event["worker"])] = (int(event["generation"]), told.key)
        return told

    def _further(self, key: int, line: str, end_ms: int | None = None) -> Annotation:
        told = self._told[key]
        self._told[key] = replace(told, text=f"{told.text}\n{line}", end_ms=end_ms or told.end_ms)
        return self._told[key]


_TELLERS: dict[str, Callable[[Chronicle, Event], Annotation | None]] = {
    "stall": Chronicle._stall,
    "fence": Chronicle._fence,
    "route": Chronicle._route,
    "path_switch": Chronicle._path_switch,
    "recovery": Chronicle._recovery,
    "worker_start": Chronicle._start,
    "weights_start": Chronicle._start,
    "restart_budget_gone": Chronicle._budget_gone,
    "flight_record": Chronicle._flight_record,
    "device_out": Chronicle._device_out,
    "give_up": Chronicle._give_up,
}
EVENTS = frozenset(_TELLERS)


def _because(reason: str) -> str:
    return _REASONS.get(reason, reason)


def _node_action(event: Event) -> str:
    action = event.get("node_action")
    return f" What has to be done to the node: {action}." if action else ""


def _device(event: Event) -> str:
    return str(event.get("device", ""))


def _time_ms(event: Event) -> int:
    return (datetime.fromisoformat(str(event["at"])) - _EPOCH) // timedelta(milliseconds=1)
