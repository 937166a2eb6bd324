"""Calls into cuda.bindings: what their errors become here, and the context that a thread needs for them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch


class BuildError(RuntimeError):
    """NVRTC or the driver refused, or is not there; the message holds what it said."""


def checked(returned: Any, what: str = "CUDA") -> Any:
    """The values of a call into cuda.bindings; its error as a BuildError that names `what` was asked."""
    error, *values = returned
    if int(error) != 0:
        raise BuildError(f"{what} answered {error!r}")
    return values[0] if len(values) == 1 else values


@contextlib.contextmanager
def told_as_build_errors() -> Iterator[None]:
    """What cuda.bindings raises by itself, for a library that is not there first of all, as a BuildError."""
    try:
        yield
    except BuildError:
        raise
    except (ImportError, OSError, RuntimeError) as error:
        raise BuildError(f"{type(error).__name__}: {error}") from error


class _Thread(threading.local):
    def __init__(self) -> None:
        self.bound: set[int] = set()  # devices whose context this thread has been given


_thread = _Thread()


def make_current(device_index: int) -> None:
    """Give this thread the device's primary context, which is torch's too; once for each thread and device.

    A thread gets one with the first call of the runtime that needs it, and those that only ask, torch's current_device
    and current_stream among them, do not. To be called while the device is torch's current one: whoever changes that
    later does it through the runtime, which changes the context with it. Raises BuildError.
    """
    if device_index in _thread.bound:
        return
    with told_as_build_errors():
        from cuda.bindings import driver

        device = checked(driver.cuDeviceGet(device_index), "cuDeviceGet")
        context = checked(driver.cuDevicePrimaryCtxRetain(device), "cuDevicePrimaryCtxRetain")
        checked(driver.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    _thread.bound.add(device_index)


@contextlib.contextmanager
def on_device(device_index: int) -> Iterator[None]:
    """The device is torch's current one, and its context this thread's. Raises BuildError."""
    with torch.cuda.device(device_index):
        make_current(device_index)
        yield
