"""Replaying a recording: which step when, and when an Xid comes, by a clock that is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fdmoe_watchdog.probe.backend import Unreadable
from fdmoe_watchdog.probe.recorded import H200_FROM_FIGURES, RecordedBackend, Recording, load

FIGURES = {"uuid": "recorded-x", "name": "X"}


def recording(**changes: Any) -> dict[str, Any]:
    steps = [{"after_s": at, "state": str(at), "origin": "", "figures": FIGURES} for at in (0, 2)]
    return {"format": 1, "origin": "", "length_s": 5, "steps": steps, "xids": [{"after_s": 1, "xid": 13}], **changes}


def test_the_shipped_recording_says_what_it_is() -> None:
    shipped = load(H200_FROM_FIGURES)
    assert shipped.origin.startswith("Written by hand, not captured.")
    assert [(step.after_s, step.state) for step in shipped.steps] == [
        (0.0, "idle"),
        (10.0, "working"),
        (20.0, "spinning without progress"),
    ]
    assert all(step.origin.startswith(("Measured", "Chosen")) for step in shipped.steps)
    assert all(step.figures.uuid == "recorded-h200" for step in shipped.steps)


def test_steps_follow_the_clock_and_begin_again() -> None:
    shipped = load(H200_FROM_FIGURES)
    times = (0.0, 9.99, 10.0, 29.9, 30.0, 55.0)
    assert [shipped.step(elapsed_s).figures.power_watts for elapsed_s in times] == [76, 76, 430, 139, 76, 139]


def test_xids_come_once_a_round() -> None:
    found = msgspec.convert(recording(), Recording)
    assert [found.next_xid(after) for after in (-1.0, 0.9, 1.0, 5.5, 6.0)] == [
        (1, 13), (1, 13), (6.0, 13), (6.0, 13), (11.0, 13),
    ]  # fmt: skip
    assert msgspec.convert(recording(xids=[]), Recording).next_xid(0) is None


def test_a_reading_has_the_clocks_time_and_the_devices_name() -> None:
    now = [100.0]
    device = RecordedBackend(H200_FROM_FIGURES, lambda: now[0]).open("7")
    now[0] = 121.5
    reading = device.read()
    assert (reading.device, reading.source, reading.begun_ns) == ("7", "recorded", 121_500_000_000)
    assert [(gpu.uuid, gpu.power_watts) for gpu in reading.gpus] == [("recorded-h200-7", 139.0)]


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
