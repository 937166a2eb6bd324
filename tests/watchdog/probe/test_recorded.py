"""Replaying a recording: which step when, and when an Xid comes, by a clock that is given."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fdmoe_watchdog.probe.backend import Unreadable
from fdmoe_watchdog.probe.recorded import H200, RecordedBackend, Recording, load

FIGURES = {"uuid": "recorded-x", "name": "X"}


def recording(**changes: Any) -> dict[str, Any]:
    steps = [{"after_s": at, "state": str(at), "origin": "", "figures": FIGURES} for at in (0, 2)]
    return {"format": 1, "origin": "", "length_s": 5, "steps": steps, "xids": [{"after_s": 1, "xid": 13}], **changes}


def test_the_shipped_recording_says_what_it_is() -> None:
    shipped = load(H200)
    assert shipped.origin.startswith("Captured from NVML on one NVIDIA H200 by benchmarks/gpu_recording.py")
    assert {step.figures.uuid for step in shipped.steps} == {"recorded-nvidia-h200"}
    faces = {
        state: {
            (step.figures.utilization, step.figures.tensor_activity == 0.0, (step.figures.dram_bandwidth or 0) < 1e-4)
            for step in steps
        }
        for state, steps in groupby(shipped.steps, lambda step: step.state)
    }
    assert list(faces) == ["idle", "working", "stalling", "busy without progress", "recovered"]
    assert faces["idle"] == {(0.0, True, True)}
    assert faces["busy without progress"] == {(1.0, True, True)}
    assert not any(tensor or dram for _, tensor, dram in faces["working"] | faces["recovered"])


def test_steps_follow_the_clock_and_begin_again() -> None:
    found = msgspec.convert(recording(), Recording)
    times = (0.0, 1.99, 2.0, 4.99, 5.0, 6.9, 7.1)
    assert [found.step(elapsed_s).after_s for elapsed_s in times] == [0, 0, 2, 2, 0, 0, 2]


def test_xids_come_once_a_round() -> None:
    found = msgspec.convert(recording(), Recording)
    assert [found.next_xid("0", after) for after in (-1.0, 0.9, 1.0, 5.5, 6.0)] == [
        (1, 13), (1, 13), (6.0, 13), (6.0, 13), (11.0, 13),
    ]  # fmt: skip
    assert msgspec.convert(recording(xids=[]), Recording).next_xid("0", 0) is None


def test_an_xid_may_be_of_one_device() -> None:
    xids = [{"after_s": 1, "xid": 13}, {"after_s": 2, "xid": 79, "device": "1"}]
    found = msgspec.convert(recording(xids=xids), Recording)
    assert [found.next_xid(device, 1.0) for device in ("0", "1", "GPU-2")] == [(6.0, 13), (2.0, 79), (6.0, 13)]


def test_a_reading_has_the_clocks_time_and_the_devices_name() -> None:
    now = [100.0]
    device = RecordedBackend(H200, lambda: now[0]).open("7")
    now[0] = 117.5
    reading = device.read()
    assert (reading.device, reading.source, reading.begun_ns) == ("7", "recorded", 117_500_000_000)
    assert [(gpu.uuid, gpu.utilization, gpu.power_watts) for gpu in reading.gpus] == [
        ("recorded-nvidia-h200-7", 1.0, 130.398)
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 3}, "format is 3; 1 is allowed"),
        ({"steps": []}, "steps must begin at after_s 0"),
        ({"length_s": 2}, "steps have after_s [0.0, 2.0]; allowed: rising, from 0 to below 2"),
        ({"xids": [{"after_s": 9, "xid": 1}]}, "xids have after_s [9.0]; allowed: rising, from 0 to below 5"),
        ({"speed": 2}, "Object contains unknown field `speed`"),
        ({"length_s": "long"}, "Expected `float`, got `str`"),
    ],
)
def test_what_no_recording_is(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(recording(**changes)))
    with pytest.raises(Unreadable) as caught:
        RecordedBackend(file).open("0")
    assert caught.value.trouble == "bad_recording"
    assert str(caught.value).startswith(f"{file}: {problem}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="No such file"):
        RecordedBackend(tmp_path / "none").open("0")
