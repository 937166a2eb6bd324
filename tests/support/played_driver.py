"""CUDA's driver, played: CPU layers are computed by the Hopper form as far as a launch, and the launch is noted."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fdmoe_kernels.hopper import build, driver, plan, scratch
from fdmoe_kernels.hopper.params import Params, TensorMap


@dataclass
class Listener:
    """The driver: what was asked of it, by thread, the arguments of each launch, and the CTAs of each cluster."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    launched: list[tuple[int, ...]] = field(default_factory=list)
    params: list[Params] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)

    def note(self, name: str, *answer: object) -> Any:
        self.calls.append((name, threading.get_ident()))
        return (0, *answer)

    def cuLaunchKernel(self, *arguments: int) -> tuple[int]:
        self.note("launch")
        self.launched.append(arguments)
        self._keep(arguments[9])
        return (0,)

    def cuLaunchKernelEx(self, config: Any, function: int, address: int, extra: int) -> tuple[int]:
        self.note("launch")
        grid = (config.gridDimX, config.gridDimY, config.gridDimZ)
        block = (config.blockDimX, config.blockDimY, config.blockDimZ)
        stream = int(config.hStream)
        self.launched.append((function, *grid, *block, config.sharedMemBytes, stream, address, extra))
        (attribute,) = config.attrs
        self.clusters.append(attribute.value.clusterDim.x)
        self._keep(address)
        return (0,)

    def _keep(self, arguments: int) -> None:
        address = ctypes.c_void_p.from_address(arguments).value
        assert address is not None
        self.params.append(Params.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Params))))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def play_hopper(monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    """CPU layers as if they were on a Hopper device, in this process only. A build with fault n has the handles
    77 + 10 n and, for one token, 78 + 10 n."""
    from cuda.bindings import driver as real

    monkeypatch.setattr(scratch, "hopper_kernels_supported", lambda *_: True)
    monkeypatch.setattr(
        plan,
        "load_layer",
        lambda _device, _dtype, fault: build.Kernels(*(handle + 10 * fault for handle in (77, 78))),
    )
    monkeypatch.setattr(plan, "_tensor_map", lambda *_, **__: TensorMap())
    monkeypatch.setattr(plan.Plan, "_driver", listener)
    monkeypatch.setattr(driver, "_thread", driver._Thread())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=55))
    monkeypatch.setattr(real, "cuDeviceGet", lambda index: (0, index + 100))
    monkeypatch.setattr(
        real, "cuDevicePrimaryCtxRetain", lambda device: listener.note(f"retain {device}", device + 100)
    )
    monkeypatch.setattr(real, "cuCtxSetCurrent", lambda context: listener.note(f"current {context}"))
