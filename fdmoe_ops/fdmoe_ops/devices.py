"""Which devices this machine has, without importing torch here: the process that asks becomes the watchdog.

`python -m fdmoe_ops.devices` is the short process that asks, and prints {"cuda": [UUID of each device]}.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import logging
import runpy
import subprocess
import sys
import uuid
from pathlib import Path

# NVIDIA's driver, its form under WSL, AMD's driver
DEVICE_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"), Path("/dev/kfd"))
# a cold import of torch from a network disk takes tens of seconds
PROBE_DEADLINE_S = 120.0

logger = logging.getLogger(__name__)


class DeviceError(ValueError):
    """A device that is wanted is not there, or nobody can say whether it is."""


def are_cpu(devices: tuple[str, ...]) -> bool:
    """Whether all are the CPU's; all of a tree are of one kind."""
    return devices[0].partition(":")[0] == "cpu"


def find_devices(wanted: tuple[str, ...]) -> dict[str, str]:
    """The devices' names for `wanted`, the setting `devices`: cpu, or cpu:N.., or cuda:N.., each with its UUID as NVML
    knows it, "" for the CPU's. Raises DeviceError.

    A machine without a GPU driver answers at once; elsewhere a process of its own is asked.
    """
    if are_cpu(wanted):
        return dict.fromkeys(wanted, "")
    if wanted == ("auto",) and not any(file.exists() for file in DEVICE_FILES):
        return {"cpu": ""}
    text = ",".join(wanted)
    found = {f"cuda:{index}": uuid for index, uuid in enumerate(_cuda_uuids(text))}
    if wanted == ("auto",) and not found:
        logger.warning("a GPU driver is installed, but torch sees no CUDA device: the CPU is used")
        return {"cpu": ""}
    names = tuple(found)
    chosen = {"auto": names[:1], "cuda": names[:1], "all": names}.get(wanted[0], wanted)
    if not chosen or not set(chosen) <= set(found):
        there = ", ".join(found) or "no CUDA device"
        raise DeviceError(f"devices is {text}; torch sees {there} on this machine (cpu is always allowed)")
    return {name: found[name] for name in chosen}


def _cuda_uuids(wanted: str) -> list[str]:
    command = (sys.executable, "-P", "-m", "fdmoe_ops.devices")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_DEADLINE_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"devices is {wanted}; torch did not name its devices in {PROBE_DEADLINE_S:g} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"devices is {wanted}; torch cannot be asked for its devices: {last}")
    # torch and its plug-ins may print lines of their own before ours
    uuids = json.loads(done.stdout.splitlines()[-1])["cuda"]
    assert isinstance(uuids, list), f"the probe answered {done.stdout!r}"
    return uuids


def _probe() -> None:
    uuids = asked_of_driver()
    print(json.dumps({"cuda": asked_of_torch() if uuids is None else uuids}))


def asked_of_driver() -> list[str] | None:
    """The devices that torch sees, in its order, as NVIDIA's driver names them; None where only torch itself can tell.
    To import its CUDA build takes seconds, and whoever starts a tree anew waits for them."""
    wanted = _cuda_of_torch()
    if wanted is None:
        return None
    count, version, device = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    identity = (ctypes.c_ubyte * 16)()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value // 1000 < wanted:
            return None
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return None
        uuids = []
        for index in range(count.value):
            # the first version of this call: the GPU's own name, also where a part of it is what we are given
            if driver.cuDeviceGet(ctypes.byref(device), index) or driver.cuDeviceGetUuid(identity, device):
                return None
            uuids.append(f"GPU-{uuid.UUID(bytes=bytes(identity))}")
    except (OSError, AttributeError):
        return None
    return uuids


def asked_of_torch() -> list[str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # NVML's order of devices is another than CUDA's where CUDA_VISIBLE_DEVICES says so, or the devices differ
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(count)]


def _cuda_of_torch() -> int | None:
    """The major version of the CUDA that torch is built for; None if it is built for none, or cannot be found. Without
    importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    try:
        cuda = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    except (OSError, SyntaxError, ImportError):
        return None
    return int(cuda.partition(".")[0]) if cuda else None


if __name__ == "__main__":
    _probe()
