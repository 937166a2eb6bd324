"""What the watchdog shows of its GPUs: one immutable view a device, read by scrapes and by the CLI."""

from __future__ import annotations

import msgspec

from fdmoe_watchdog.messages import GpuFigures, GpuReading, GpuSource


class GpuView(msgspec.Struct, frozen=True):
    """`device` is the configuration's name for it. Without `collecting` there are no figures, and `reason` says why.

    xids           how often each label of fdmoe_watchdog.xid was seen; empty as long as Xids have never been watched
    last_xid_at    Unix time of the last one, None before the first
    """

    device: str
    collecting: bool
    reason: str
    source: GpuSource
    xids_watched: bool
    xids: dict[str, int]
    last_xid_at: float | None
    gpus: tuple[GpuFigures, ...]


def holds_memory(reading: GpuReading | None, pid: int, after_ns: int) -> bool | None:
    """Whether a process has memory on the device, by a reading that began after `after_ns` of CLOCK_MONOTONIC.

    None: there is no such reading yet, or the driver does not say which processes there are. In a container the driver
    may call a process by its number outside.
    """
    if reading is None or reading.begun_ns <= after_ns:
        return None
    lists = [gpu.processes for gpu in reading.gpus]
    if any(processes is None for processes in lists):
        return None
    return any(process.pid == pid for processes in lists for process in processes or ())


def memory_bytes(gpus: tuple[GpuFigures, ...], pid: int) -> int | None:
    """What a process has on these GPUs; None where the driver does not say. In a container as for holds_memory."""
    used = [process.memory_bytes for gpu in gpus for process in gpu.processes or () if process.pid == pid]
    return sum(size for size in used if size is not None) if any(size is not None for size in used) else None
