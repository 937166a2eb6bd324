"""The probe's real process under its real keeper: it reads, it fails, it blocks, and nobody waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from fake_nvml import GPU_UUID
from probed_watchdog import RECOVERY, WATCHDOG, Watchdog
from pydantic import ValidationError

from fdmoe_watchdog import messages
from fdmoe_watchdog.messages import GpuFailed, GpuReading, XidSeen
from fdmoe_watchdog.probe.recorded import H200
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings

Watch = Callable[..., Watchdog]


def readings(watchdog: Watchdog) -> list[GpuReading]:
    return [message for message in watchdog.heard if isinstance(message, GpuReading)]


def test_readings_come_at_their_interval(watch: Watch) -> None:
    watchdog = watch()
    watchdog.until(lambda: len(readings(watchdog)) >= 4)
    view = watchdog.view
    assert (view.device, view.collecting, view.reason, view.source, view.xids_watched) == (
        "cuda:0", True, "", "nvml", True,
    )  # fmt: skip
    (gpu,) = view.gpus
    assert (gpu.uuid, gpu.power_watts, gpu.sm_activity) == (GPU_UUID.format(index=0), 139.0, 1.0)
    gaps = [later.begun_ns - earlier.begun_ns for earlier, later in pairwise(readings(watchdog))]
    assert min(gaps) >= 0.1e9
    assert watchdog.named("gpu_readable") == [{"device": "cuda:0", "source": "nvml", "gpus": 1}]


def test_an_xid_is_told_and_its_gpu_read_at_once(watch: Watch) -> None:
    watchdog = watch(xids=[31, 777])
    watchdog.until(lambda: sum(watchdog.view.xids.values()) == 2)
    view = watchdog.view
    assert {label: count for label, count in view.xids.items() if count} == {"31": 1, "other": 1}
    assert view.last_xid_at == pytest.approx(time.time(), abs=30)
    (first, second) = [message for message in watchdog.heard if isinstance(message, XidSeen)]
    assert (first.xid, second.xid) == (31, 777)
    assert watchdog.named("gpu_xid") == [
        {
            "device": "cuda:0",
            "xid": 31,
            "meaning": "page fault: a kernel used an address that is not mapped",
            "follows": "application",
        },
        {"device": "cuda:0", "xid": 777, "meaning": "not in our table"},
    ]
    assert watchdog.keeper.health("cuda:0", 0).state == "ok"
    watchdog.until(lambda: watchdog.keeper.reading("cuda:0").begun_ns > second.at_ns)


def test_a_machine_without_a_driver_is_told_why_and_the_process_stays(watch: Watch) -> None:
    watchdog = watch(errors={"nvmlInitWithFlags": 9})
    watchdog.until(lambda: len(watchdog.heard) >= 6)
    assert set(watchdog.heard) == {GpuFailed("0", "nvml", "no_driver", "NVML does not start: Driver Not Loaded")}
    view = watchdog.view
    assert (view.collecting, view.reason, view.gpus, view.xids) == (
        False, "NVML does not start: Driver Not Loaded", (), {},
    )  # fmt: skip
    assert [event["event"] for event in watchdog.events.last] == ["gpu_unreadable"]


def test_a_driver_that_comes_later_is_found(watch: Watch) -> None:
    watchdog = watch(errors={"nvmlInitWithFlags": [9, 9]})
    watchdog.until(lambda: watchdog.view.collecting)
    assert [event["event"] for event in watchdog.events.last] == ["gpu_unreadable", "gpu_readable"]


def test_a_driver_that_is_replaced_takes_a_new_process(watch: Watch) -> None:
    watchdog = watch(errors={"nvmlDeviceGetPowerUsage": [0, 0, 18]})
    watchdog.until(lambda: len(watchdog.named("gpu_readable")) == 2)
    assert watchdog.named("probe_exit") == [{"exit_code": 1}]
    assert [event["trouble"] for event in watchdog.named("gpu_unreadable")] == ["no_driver"]


def test_a_call_that_blocks_for_ever_is_silence_and_the_process_is_replaced_within_its_budget(watch: Watch) -> None:
    watchdog = watch(
        blocked=["nvmlDeviceGetTotalEnergyConsumption"], recovery=RECOVERY.model_copy(update={"restart_budget": 1})
    )
    watchdog.until(lambda: len(watchdog.named("probe_budget_gone")) == 1, 60)
    # the first process and as many again as the budget allows; then none until the period is over
    silent = watchdog.named("probe_silent")
    assert [event["device"] for event in silent] == ["cuda:0"] * 2
    # told in whole milliseconds: a silence of the deadline and a little more is told as the deadline
    assert all(event["silent_s"] >= round(6 * WATCHDOG.gpu_deadline_s, 3) for event in silent)
    assert watchdog.keeper.child is None
    reason = "the probe is down: it said nothing of cuda:0 in its deadline"
    assert (watchdog.view.collecting, watchdog.view.reason) == (False, reason)
    assert readings(watchdog) == []
    begun = watchdog.keeper._restarts[0]
    watchdog.keeper.tend(begun + RECOVERY.restart_period_s - 0.001)
    assert watchdog.keeper.child is None
    watchdog.keeper.tend(begun + RECOVERY.restart_period_s)
    assert watchdog.keeper.child is not None, "the oldest restart has left the period"


def test_a_stopped_process_is_replaced_and_its_figures_vanish_meanwhile(watch: Watch) -> None:
    watchdog = watch()
    watchdog.until(lambda: watchdog.view.collecting)
    stopped = watchdog.keeper.child.pid
    os.kill(stopped, signal.SIGSTOP)
    watchdog.until(lambda: not watchdog.view.collecting)
    assert watchdog.view.reason == "the probe is down: it said nothing of cuda:0 in its deadline"
    assert watchdog.view.gpus == ()
    watchdog.until(lambda: watchdog.view.collecting)
    assert watchdog.keeper.child.pid != stopped
    assert len(watchdog.named("probe_silent")) == 1
    assert watchdog.named("probe_exit") == [], "a kill of ours is no news of its own"


def test_a_blocked_gpu_takes_nothing_from_the_others_until_its_deadline(watch: Watch) -> None:
    watchdog = watch(
        gpus=2, devices={"cuda:0": "0", "cuda:1": "1"}, blocked=["nvmlDeviceGetTemperature"], blocked_gpu=1
    )
    watchdog.until(lambda: len(readings(watchdog)) >= 5)
    good, bad = watchdog.keeper.view()
    assert (good.collecting, bad.collecting, bad.reason) == (True, False, "the probe has not read it yet")
    watchdog.until(lambda: len(watchdog.named("probe_silent")) == 1)
    assert [event["device"] for event in watchdog.named("probe_silent")] == ["cuda:1"]
    assert {reading.device for reading in readings(watchdog)} == {"0"}


def test_a_device_that_is_not_there_takes_nothing_from_the_others(watch: Watch) -> None:
    watchdog = watch(devices={"cuda:0": "0", "cuda:1": "7"})
    watchdog.until(lambda: {message.device for message in watchdog.heard} == {"0", "7"})
    good, bad = watchdog.keeper.view()
    assert (good.collecting, bad.collecting, bad.reason) == (True, False, "device 7: Invalid Argument")


def test_a_reading_that_is_told_to_block_silences_its_device_alone_and_the_probe_is_replaced(watch: Watch) -> None:
    watchdog = watch(gpus=2, devices={"cuda:0": "0", "cuda:1": "1"}, chaos=True)
    watchdog.until(lambda: all(view.collecting for view in watchdog.keeper.view()))
    first = watchdog.keeper.child
    first.channel.send(messages.Block(3600.0))
    watchdog.until(lambda: bool(watchdog.named("probe_silent")))
    (silent,) = watchdog.named("probe_silent")
    assert silent["pid"] == first.pid
    watchdog.until(lambda: watchdog.keeper.child not in (None, first))
    watchdog.until(lambda: all(view.collecting for view in watchdog.keeper.view()))


def test_without_chaos_a_probe_is_told_nothing(watch: Watch) -> None:
    watchdog = watch()
    watchdog.until(lambda: watchdog.view.collecting)
    watchdog.keeper.child.channel.send(messages.Block(3600.0))
    read = len(watchdog.heard)
    watchdog.until(lambda: len(watchdog.heard) > read + 5)
    assert not watchdog.named("probe_silent")


def test_a_process_that_ends_is_started_again(watch: Watch) -> None:
    watchdog = watch()
    watchdog.until(lambda: watchdog.view.collecting)
    os.kill(watchdog.keeper.child.pid, signal.SIGKILL)
    watchdog.until(lambda: len(watchdog.named("probe_exit")) == 1)
    assert watchdog.named("probe_exit") == [{"exit_code": -9}]
    assert watchdog.view.reason == "the probe is down: it ended with exit code -9"
    watchdog.until(lambda: watchdog.view.collecting)


def test_no_budget_means_no_second_try(watch: Watch) -> None:
    watchdog = watch(recovery=RecoverySettings(restart_budget=0))
    watchdog.until(lambda: watchdog.view.collecting)
    os.kill(watchdog.keeper.child.pid, signal.SIGKILL)
    watchdog.until(lambda: len(watchdog.named("probe_budget_gone")) == 1)
    watchdog.keeper.tend(time.monotonic() + 1e9)
    assert watchdog.keeper.child is None


def test_a_recording_is_replayed_through_the_same_process_and_says_so(watch: Watch, tmp_path: Path) -> None:
    # three readings of the shipped one, 0.3 s each, and an Xid
    document = msgspec.json.decode(H200.read_bytes())
    states = {step["state"]: step for step in document["steps"]}
    document["length_s"] = 0.9
    document["steps"] = [states[state] for state in ("idle", "working", "busy without progress")]
    for place, step in enumerate(document["steps"]):
        step["after_s"] = 0.3 * place
    document["xids"] = [{"after_s": 0.45, "xid": 43}]
    short = tmp_path / "short.json"
    short.write_bytes(msgspec.json.encode(document))
    watchdog = watch(recorded=short)

    def faces() -> set[tuple[float | None, ...]]:
        gpus = [gpu for reading in readings(watchdog) for gpu in reading.gpus]
        return {
            (gpu.utilization, gpu.sm_activity, gpu.sm_occupancy, gpu.dram_bandwidth, gpu.power_watts) for gpu in gpus
        }

    names = ("utilization", "sm_activity", "sm_occupancy", "dram_bandwidth", "power_watts")
    expected = {tuple(step["figures"][name] for name in names) for step in document["steps"]}
    assert len(expected) == 3
    watchdog.until(lambda: faces() == expected and watchdog.view.xids.get("43", 0) >= 2)
    assert {message.source for message in watchdog.heard} == {"recorded"}
    assert watchdog.view.source == "recorded"
    assert watchdog.view.gpus[0].uuid == "recorded-nvidia-h200-0"


def test_a_bad_recording_is_told_with_what_is_wrong(watch: Watch, tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"format": 2, "origin": "", "length_s": 1, "steps": []}')
    watchdog = watch(recorded=bad)
    watchdog.until(lambda: len(watchdog.heard) >= 2)
    assert set(watchdog.heard) == {GpuFailed("0", "recorded", "bad_recording", f"{bad}: format is 2; 1 is allowed")}


def test_a_deadline_of_less_than_two_readings_is_refused() -> None:
    assert WatchdogSettings(gpu_interval_s=2, gpu_deadline_s=4).gpu_deadline_s == 4
    with pytest.raises(ValidationError, match="gpu_deadline_s is 3; at least twice gpu_interval_s, 4, is allowed"):
        WatchdogSettings(gpu_interval_s=2, gpu_deadline_s=3)


class Unkillable:
    """A process that is blocked in the driver: SIGKILL waits until the driver lets it go."""

    pid, exit_code, channel, alive = 1, None, None, True

    def __init__(self) -> None:
        self.signals: list[int] = []

    def signal(self, number: int) -> None:
        self.signals.append(number)


def test_a_process_that_does_not_end_is_killed_once_and_never_doubled(watch: Watch) -> None:
    keeper = watch().keeper
    keeper.child = blocked = Unkillable()  # type: ignore[assignment]
    for turn in range(100):
        keeper.tend(keeper._start_at + turn)
    assert blocked.signals == [signal.SIGKILL]
    assert keeper.child is blocked
    (view,) = keeper.view()
    assert view.reason == "the probe is down: it said nothing of cuda:0 in its deadline"
    blocked.alive, blocked.exit_code = False, -9  # type: ignore[misc, assignment]
    keeper.tend(keeper._start_at + 200)
    assert keeper.child is None
    blocked.signals.clear()


def test_a_watchdog_that_was_starved_does_not_take_its_own_sleep_for_silence(watch: Watch) -> None:
    keeper = watch().keeper
    keeper.child = probe = Unkillable()  # type: ignore[assignment]
    keeper.heard(GpuReading("0", "nvml", 1, True, ()))
    keeper.tend(keeper._start_at)
    keeper._devices["0"].silent_s = 0.0
    keeper.tend(keeper._start_at + 1000)
    assert probe.signals == []
    assert keeper._devices["0"].silent_s == 5 * WATCHDOG.poll_interval_s, "however short the deadline is"
    keeper.child = None


def test_the_watchdogs_side_does_not_know_nvml() -> None:
    script = (
        "import sys, fdmoe_watchdog.probe_keeper, fdmoe_watchdog.gpu_metrics, fdmoe_watchdog.probe.recorded;"
        "sys.exit('pynvml' in sys.modules)"
    )
    assert subprocess.run((sys.executable, "-P", "-c", script), timeout=60, check=False).returncode == 0
