"""What the host was like, where it can be had: load, pressure and memory out of /proc, and versions of what runs."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from fdmoe_watchdog.proc import PROC, text_of

_MEMORY = ("MemTotal", "MemFree", "MemAvailable", "SwapTotal", "SwapFree", "Shmem")
_DISTRIBUTIONS = ("fdmoe-ops", "fdmoe-kernels", "fdmoe-watchdog", "torch", "triton")


def host_facts(proc: Path = PROC) -> dict[str, Any]:
    """`load` is the text of /proc/loadavg, `pressure` that of /proc/pressure/*, `memory_bytes` numbers by their names
    in /proc/meminfo. Reading takes a millisecond, and the kernel may make it wait: not for the watchdog's loop."""
    facts: dict[str, Any] = {}
    if load := text_of(proc / "loadavg"):
        facts["load"] = load
    if pressure := {name: text for name in ("cpu", "memory", "io") if (text := text_of(proc / "pressure" / name))}:
        facts["pressure"] = pressure
    if memory := _memory(text_of(proc / "meminfo")):
        facts["memory_bytes"] = memory
    return facts


@functools.cache
def versions() -> dict[str, str]:
    """Of Python, the kernel, the GPU's driver and the distributions that are installed. The first call reads the disk,
    some 10 ms."""
    found = {"python": platform.python_version(), "kernel": os.uname().release}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    if driver := text_of(PROC / "driver/nvidia/version"):
        found["nvidia"] = driver.splitlines()[0]
    return found


def _memory(text: str) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        size, _, unit = rest.strip().partition(" ")
        if name in _MEMORY and unit == "kB" and size.isdecimal():
            values[name] = int(size) * 1024
    return values
