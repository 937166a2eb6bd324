"""Finding the device: without a driver nobody is asked; otherwise a process of its own is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from fdmoe_ops import devices
from fdmoe_ops.devices import DeviceError, find_device


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(devices, "DEVICE_FILES", (tmp_path / "nvidiactl",))


def _answer(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Have a shell script stand for the interpreter that is asked."""
    interpreter = directory / "python"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_nobody_is_asked_without_a_driver(wanted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "DEVICE_FILES", (tmp_path / "absent",))
    _answer(monkeypatch, tmp_path, "exit 1")
    assert find_device(wanted) == "cpu"


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("wanted", "found"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_two_devices(wanted: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path, """echo 'a banner'; echo '{"cuda": 2}'""")
    assert find_device(wanted) == found


@pytest.mark.parametrize(
    ("wanted", "count", "message"),
    [
        ("cuda:2", 2, "device is cuda:2; torch sees cuda:0, cuda:1 on this machine (cpu is always allowed)"),
        ("cuda", 0, "device is cuda; torch sees no CUDA device on this machine (cpu is always allowed)"),
    ],
)
def test_a_device_that_is_not_there(
    wanted: str, count: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, tmp_path, f"""echo '{{"cuda": {count}}}'""")
    with pytest.raises(DeviceError) as error:
        find_device(wanted)
    assert str(error.value) == message


@pytest.mark.usefixtures("driver")
def test_a_driver_that_torch_cannot_use_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _answer(monkeypatch, tmp_path, """echo '{"cuda": 0}'""")
    with caplog.at_level(logging.WARNING):
        assert find_device("auto") == "cpu"
    assert caplog.messages == ["a GPU driver is installed, but torch sees no CUDA device: the CPU is used"]


@pytest.mark.usefixtures("driver")
def test_a_probe_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path, "echo trace >&2; echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1")
    with pytest.raises(DeviceError) as error:
        find_device("auto")
    assert str(error.value) == (
        "device is auto; torch cannot be asked for its devices: ModuleNotFoundError: No module named 'torch'"
    )


@pytest.mark.usefixtures("driver")
def test_a_probe_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(devices, "PROBE_DEADLINE_S", 0.2)
    with pytest.raises(DeviceError, match=r"device is auto; torch did not name its devices in 0.2 s"):
        find_device("auto")


def test_what_torch_itself_answers() -> None:
    command = (sys.executable, "-P", "-m", "fdmoe_ops.devices")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    import torch

    assert json.loads(done.stdout) == {"cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0}


@pytest.mark.gpu
def test_a_real_device() -> None:
    assert find_device("auto") == "cuda:0"
    with pytest.raises(DeviceError, match=r"device is cuda:99; torch sees cuda:0"):
        find_device("cuda:99")
