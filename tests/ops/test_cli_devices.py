"""Finding the devices: without a driver nobody is asked; otherwise a process of its own is."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fdmoe_ops import devices
from fdmoe_ops.devices import DeviceError, are_cpu, find_devices


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


@pytest.mark.parametrize(
    ("wanted", "found"),
    [(("auto",), ("cpu",)), (("cpu",), ("cpu",)), (("cpu:0", "cpu:1"), ("cpu:0", "cpu:1")), (("cpu:3",), ("cpu:3",))],
)
def test_nobody_is_asked_without_a_driver(
    wanted: tuple[str, ...], found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "DEVICE_FILES", (tmp_path / "absent",))
    _answer(monkeypatch, tmp_path, "exit 1")
    assert tuple(find_devices(wanted)) == found


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("auto",), ("cuda:0",)),
        (("cuda",), ("cuda:0",)),
        (("all",), ("cuda:0", "cuda:1")),
        (("cuda:1",), ("cuda:1",)),
        (("cuda:1", "cuda:0"), ("cuda:1", "cuda:0")),
        (("cpu",), ("cpu",)),
        (("cpu:0", "cpu:1"), ("cpu:0", "cpu:1")),
    ],
)
def test_two_devices(
    wanted: tuple[str, ...], found: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, tmp_path, """echo 'a banner'; echo '{"cuda": ["GPU-a", "GPU-b"]}'""")
    assert tuple(find_devices(wanted)) == found


def test_one_process_is_asked_whatever_the_number_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    _answer(monkeypatch, tmp_path, f"""echo "$@" >> {asked}; echo '{{"cuda": [1, 2, 3, 4, 5, 6, 7, 8]}}'""")
    assert tuple(find_devices(("all",))) == tuple(f"cuda:{index}" for index in range(8))
    assert asked.read_text() == "-P -m fdmoe_ops.devices\n"


@pytest.mark.parametrize(
    ("names", "answer"),
    [(("cpu",), True), (("cpu:0", "cpu:1"), True), (("cuda:0",), False), (("cuda:0", "cuda:1"), False)],
)
def test_the_kind_of_all_devices(names: tuple[str, ...], answer: bool) -> None:
    assert are_cpu(names) is answer


@pytest.mark.usefixtures("driver")
def test_each_device_has_its_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path, """echo '{"cuda": ["GPU-a", "GPU-b"]}'""")
    assert find_devices(("cuda:1", "cuda:0")) == {"cuda:1": "GPU-b", "cuda:0": "GPU-a"}
    assert find_devices(("cpu:0", "cpu:1")) == {"cpu:0": "", "cpu:1": ""}


@pytest.mark.parametrize(
    ("wanted", "count", "message"),
    [
        (
            ("cuda:2",),
            2,
            "devices is cuda:2; torch sees cuda:0, cuda:1 on this machine (cpu is always allowed)",
        ),
        (
            ("cuda:0", "cuda:7"),
            1,
            "devices is cuda:0,cuda:7; torch sees cuda:0 on this machine (cpu is always allowed)",
        ),
        (("cuda:0",), 0, "devices is cuda:0; torch sees no CUDA device on this machine (cpu is always allowed)"),
        (("cuda",), 0, "devices is cuda; torch sees no CUDA device on this machine (cpu is always allowed)"),
        (("all",), 0, "devices is all; torch sees no CUDA device on this machine (cpu is always allowed)"),
    ],
)
def test_a_device_that_is_not_there(
    wanted: tuple[str, ...], count: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answer(monkeypatch, tmp_path, f"""echo '{{"cuda": {list(range(count))}}}'""")
    with pytest.raises(DeviceError) as error:
        find_devices(wanted)
    assert str(error.value) == message


@pytest.mark.usefixtures("driver")
def test_a_driver_that_torch_cannot_use_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _answer(monkeypatch, tmp_path, """echo '{"cuda": []}'""")
    with caplog.at_level(logging.WARNING):
        assert tuple(find_devices(("auto",))) == ("cpu",)
    assert caplog.messages == ["a GPU driver is installed, but torch sees no CUDA device: the CPU is used"]


@pytest.mark.usefixtures("driver")
def test_a_probe_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path, "echo trace >&2; echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1")
    with pytest.raises(DeviceError) as error:
        find_devices(("auto",))
    assert str(error.value) == (
        "devices is auto; torch cannot be asked for its devices: ModuleNotFoundError: No module named 'torch'"
    )


@pytest.mark.usefixtures("driver")
def test_a_probe_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(devices, "PROBE_DEADLINE_S", 0.2)
    with pytest.raises(DeviceError, match=r"devices is auto; torch did not name its devices in 0.2 s"):
        find_devices(("auto",))


def test_what_torch_itself_answers() -> None:
    command = (sys.executable, "-P", "-m", "fdmoe_ops.devices")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    import torch

    uuids = json.loads(done.stdout)["cuda"]
    assert len(uuids) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert all(re.fullmatch("GPU-[0-9a-f-]{36}", uuid) for uuid in uuids)


_DRIVER = """
#include <cstring>
extern "C" {
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuInit(unsigned) { return INIT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = index + 7; return 0; }
int cuDeviceGetUuid(unsigned char *uuid, int device) { memset(uuid, device, 16); return 0; }
}
"""


@pytest.mark.parametrize(
    ("cuda", "version", "init", "by"),
    [
        ("13.0", 13000, 0, "driver"),
        ("12.8", 13020, 0, "driver"),
        ("13.0", 12080, 0, "torch"),  # too old for it
        ("13.0", 13000, 802, "torch"),
        (None, 13000, 0, "torch"),  # torch's build for the CPU sees no device
    ],
)
def test_the_driver_is_asked_where_torch_would_ask_it(
    cuda: str | None, version: int, init: int, by: str, tmp_path: Path
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (Debian and Ubuntu: apt-get install g++)")
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "version.py").write_text(f"cuda = {cuda!r}\n")
    # a torch that is imported answers, here with a device of its own
    (tmp_path / "torch" / "__init__.py").write_text(
        "class cuda:\n"
        "    device_count, is_available = lambda: 1, lambda: True\n"
        "    get_device_properties = lambda index: type('Properties', (), {'uuid': 'torch'})\n"
    )
    (tmp_path / "driver.cpp").write_text(_DRIVER)
    subprocess.run(
        ("g++", "-shared", "-fPIC", f"-DVERSION={version}", f"-DINIT={init}", "-o", tmp_path / "libcuda.so.1",
         tmp_path / "driver.cpp"),
        check=True,
    )  # fmt: skip
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    done = subprocess.run(
        (sys.executable, "-P", "-m", "fdmoe_ops.devices"),
        env={**os.environ, "PYTHONPATH": path, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    of_driver = ["GPU-07070707-0707-0707-0707-070707070707", "GPU-08080808-0808-0808-0808-080808080808"]
    assert json.loads(done.stdout) == {"cuda": of_driver if by == "driver" else ["GPU-torch"]}


@pytest.mark.gpu
def test_driver_and_torch_name_the_same_devices() -> None:
    assert devices.asked_of_driver() == devices.asked_of_torch()


@pytest.mark.gpu
def test_a_real_device() -> None:
    import torch

    assert tuple(find_devices(("auto",))) == ("cuda:0",)
    assert tuple(find_devices(("all",))) == tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    with pytest.raises(DeviceError, match=r"devices is cuda:99; torch sees cuda:0"):
        find_devices(("cuda:99",))
