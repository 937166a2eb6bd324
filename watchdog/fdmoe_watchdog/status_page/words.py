"""The ladder's events in plain sentences, and how bad each is."""

from __future__ import annotations

from typing import Literal

from fdmoe_watchdog.status import Event

# what to feel about it: something broke, something is not as it should be, something was put right, news
Tone = Literal["bad", "warn", "good", "note"]

_WORDS: dict[str, tuple[Tone, str]] = {
    # ---- the ladder
    "stall": ("bad", "Worker {worker} stalled: {verdict}."),
    "abort_ended": ("good", "The stalled kernel of worker {worker} ended when it was told to."),
    "abort_timed_out": ("bad", "The stalled kernel of worker {worker} did not end when it was told to."),
    "fence": ("warn", "Worker {worker} is cut off ({cause}): its answers no longer count."),
    "kill": ("warn", "Worker {worker} is killed."),
    "worker_gone": ("warn", "The process of worker {worker} is gone, {exit_code}."),
    "worker_start": ("note", "Worker {worker} starts, generation {generation} ({reason})."),
    "worker_not_started": ("bad", "Worker {worker} could not be started: {reason}."),
    "spare_gone": ("warn", "A process that waited to take a place in {device} is gone, {exit_code}."),
    "spare_not_started": ("warn", "No process could be started to wait for {device}: {reason}."),
    "worker_ready": ("good", "Worker {worker} is ready after {seconds}."),
    "worker_failed": ("bad", "Worker {worker} cannot serve: {reason}."),
    "route": ("note", "Requests go to worker {worker}, generation {generation}."),
    "recovery": ("good", "Recovered by {rung}: worker {worker} answered {seconds} after the detection."),
    "restart_budget_gone": ("bad", "No restart is left for {worker}."),
    "device_out": ("bad", "Device {device} is left out: {reason}. The node needs: {node_action}."),
    "give_up": ("bad", "The tree gives up: {reason}."),
    # ---- the path
    "path_switch": ("note", "The path changed from {from} to {to}: {reason}."),
    "buckets_proven": ("good", "The fused path is proven for the batch sizes {buckets}."),
    "shadow_mismatch": (
        "bad",
        "Fused and baseline differ on worker {worker}: {layer}, {tokens} tokens, relative error {relative_error}, "
        "of one token {row_error}.",
    ),
    "slow": (
        "bad",
        "The fused path of worker {worker} has become slow: {layer}, up to {bucket} tokens, {fused_s} instead of "
        "{usual_fused_s}; the baseline takes {baseline_s}.",
    ),
    "slow_excused": (
        "note",
        "The fused path of worker {worker} takes {fused_s} instead of {usual_fused_s}: {layer}, up to {bucket} tokens; "
        "the baseline takes {baseline_s} instead of {usual_baseline_s}.",
    ),
    # ---- weights
    "weights_start": ("note", "The holder {holder} loads the weights, generation {generation} ({reason})."),
    "weights_not_started": ("bad", "The holder {holder} could not be started: {reason}."),
    "weights_ready": ("good", "The holder {holder} has the weights, {size_bytes}."),
    "weights_failed": ("bad", "The holder {holder} cannot load the weights: {reason}."),
    "weights_kill": ("warn", "The holder {holder} is killed."),
    "weights_stopped": ("warn", "A signal holds the holder {holder}; what it holds is served all the same."),
    "weights_resumed": ("good", "The holder {holder} goes on."),
    "weights_gone": ("bad", "The process of the holder {holder} is gone, {exit_code}."),
    # ---- the gateway
    "gateway_listening": ("good", "The gateway listens on {url}."),
    "gateway_exit": ("bad", "The gateway's process is gone, {exit_code}."),
    "gateway_frozen": ("bad", "The gateway has said nothing for {silent_s} and is killed."),
    "gateway_not_started": ("bad", "The gateway could not be started: {reason}."),
    "drain": ("warn", "Told to stop: what is in flight is finished, for {deadline_s} at most."),
    # ---- what is read
    "link_lost": ("warn", "The gateway has no connection to worker {worker}: {reason}."),
    "page_lost": ("bad", "The beat page of worker {worker} is damaged: {reason}."),
    "counts_lost": ("bad", "The counts of worker {worker} are lost: {reason}."),
    "flight_record": ("note", "The flight record of worker {worker} is written: {file}."),
    "flight_record_lost": ("bad", "A flight record could not be written to {directory}: {reason}."),
    "message_lost": ("warn", "A {message} could not be sent to process {pid}: {reason}."),
    "refused_message": ("warn", "A message was refused: {reason}."),
    "refused_connection": ("warn", "A connection was refused: {reason}."),
    "not_accepted": ("warn", "A connection could not be accepted: {reason}."),
    # ---- the GPU
    "gpu_readable": ("note", "The figures of device {device} can be read ({source})."),
    "memory_unknown": ("warn", "Whether a dead worker's memory on {device} is back, NVML does not tell."),
    "gpu_unreadable": ("bad", "The figures of device {device} cannot be read: {reason}."),
    "gpu_xid": ("bad", "Device {device} reported Xid {xid}: {meaning}."),
    "probe_silent": ("bad", "The probe has said nothing of device {device} for {silent_s} and is killed."),
    "probe_exit": ("warn", "The probe's process is gone, {exit_code}."),
    "probe_not_started": ("bad", "The probe could not be started: {reason}."),
    "probe_budget_gone": ("bad", "No restart is left for the probe: {reason}."),
    # ---- annotations
    "annotator_exit": ("warn", "The annotator's process is gone, {exit_code}."),
    "annotator_not_started": ("bad", "The annotator could not be started: {reason}."),
    "annotator_deaf": ("warn", "The annotator does not take what it is told and is killed: {reason}."),
    # ---- chaos
    "fault_armed": ("note", "Chaos: the next launch of worker {worker} gets the fault {fault}."),
    "fault_injected": ("note", "Chaos: {fault} was done to {victims}."),
}
# why a path changed, a worker was cut off or started (policy)
_REASONS = {
    "stall": "a stalled kernel",
    "slow": "a slow kernel",
    "frozen": "the worker shows no sign of work",
    "exit": "its process ended",
    "page": "its beat page is damaged",
    "unreachable": "the gateway cannot reach it",
    "startup": "it did not become ready",
    "budget": "no restart is left",
    "mismatch": "fused and baseline differ",
    "unproven": "the fused path could not be proven",
    "cooled_down": "the pause after the last fault is over",
    "proven": "it compared well with the baseline",
    "weights": "the weights were loaded anew",
    "start": "the first start",
}
NAMES = tuple(_WORDS)


def tone_of(event: Event) -> Tone:
    tone = _WORDS.get(str(event["event"]), ("note", ""))[0]
    if event["event"] == "path_switch":
        return {"baseline": "bad", "fused": "good"}.get(str(event.get("to")), "note")  # type: ignore[return-value]
    return "bad" if event["event"] == "worker_ready" and not event.get("fused", True) else tone


def sentence(event: Event) -> str:
    """An event in words; one that is not known here, by its name and details."""
    name = str(event["event"])
    details = {key: _value(key, value) for key, value in event.items() if key not in ("at", "event")}
    if name not in _WORDS:
        return " ".join([name.replace("_", " "), *(f"{key}={value}" for key, value in details.items())])
    words = _WORDS[name][1].format_map(_Details(details))
    if name == "worker_ready" and not event.get("fused", True):
        words += " It serves on the baseline alone."
    if name == "give_up" and event.get("node_action"):
        words += f" The node needs: {event['node_action']}."
    return words.replace("..", ".")


class _Details(dict[str, str]):
    """An event of an older or newer version may lack a detail."""

    def __missing__(self, key: str) -> str:
        return "?"


def _value(key: str, value: str | int | float) -> str:
    if key == "exit_code":
        return f"killed by signal {-int(value)}" if int(value) < 0 else f"exit code {value}"
    if key in ("reason", "cause"):
        return _REASONS.get(str(value), str(value))
    if key == "buckets":
        return ", ".join(str(value).split())
    if isinstance(value, str):
        return value
    if key == "size_bytes":
        return f"{value / 2**20:.1f} MiB"
    if key in ("relative_error", "row_error"):
        return f"{value:.1e}"
    return duration(value) if key == "seconds" or key.endswith("_s") else str(value)


def duration(seconds: float) -> str:
    """ "82 ms", "2.3 s", "45 s", "4 min", "2 h", "3 d": as exact as anybody can use."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"
