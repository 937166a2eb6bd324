"""Weights in device memory, against a driver of the same calls whose device memory is memory of this process.

What these tests cannot see is the driver itself: test_gpu.py does.
"""

from __future__ import annotations

import ctypes
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda.bindings import driver as real
from lending import settings_for

from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.weights import device, driver
from fdmoe_ops.weights.borrower import open_layers
from fdmoe_ops.weights.device import DeviceBlocks
from fdmoe_ops.weights.driver import Driver
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.weights.holder import hold

CUDA = torch.device("cuda:1")
SUCCESS, NO_MEMORY = real.CUresult.CUDA_SUCCESS, real.CUresult.CUDA_ERROR_OUT_OF_MEMORY
INVALID = real.CUresult.CUDA_ERROR_INVALID_VALUE


class FakeDriver:
    """cuda.bindings.driver as one process sees it. `allocations` and their handles are the device's."""

    CUresult, CUipcMemHandle, CUipcMem_flags = real.CUresult, real.CUipcMemHandle, real.CUipcMem_flags

    def __init__(self, free_bytes: int = 1 << 30) -> None:
        self.free_bytes = free_bytes
        self.allocations: dict[int, Any] = {}
        self.calls: list[str] = []
        self.copies_on_the_way = 0
        self.context: object = None

    def cuInit(self, Flags: int) -> tuple[Any]:
        self.calls.append("cuInit")
        return (SUCCESS if Flags == 0 else INVALID,)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return (SUCCESS, f"device {ordinal}")

    def cuDevicePrimaryCtxRetain(self, dev: object) -> tuple[Any, ...]:
        return (SUCCESS, f"context of {dev}")

    def cuCtxSetCurrent(self, ctx: object) -> tuple[Any]:
        self.context = ctx
        return (SUCCESS,)

    def cuMemGetInfo(self) -> tuple[Any, ...]:
        return (SUCCESS, self.free_bytes, 1 << 31)

    def cuMemAlloc(self, bytesize: int) -> tuple[Any, ...]:
        self.calls.append("cuMemAlloc")
        if bytesize > self.free_bytes:
            return (NO_MEMORY, real.CUdeviceptr(0))
        self.free_bytes -= bytesize
        memory = (ctypes.c_uint8 * bytesize)(*b"\xff" * min(bytesize, 64))
        self.allocations[ctypes.addressof(memory)] = memory
        return (SUCCESS, real.CUdeviceptr(ctypes.addressof(memory)))

    def cuMemFree(self, dptr: int) -> tuple[Any]:
        self.free_bytes += len(self.allocations.pop(dptr))
        return (SUCCESS,)

    def cuMemcpyHtoD(self, dstDevice: int, srcHost: int, ByteCount: int) -> tuple[Any]:
        if len(self.allocations[dstDevice]) < ByteCount:
            return (INVALID,)
        ctypes.memmove(dstDevice, srcHost, ByteCount)
        self.copies_on_the_way += 1
        return (SUCCESS,)

    def cuCtxSynchronize(self) -> tuple[Any]:
        self.copies_on_the_way = 0
        return (SUCCESS,)

    def cuIpcGetMemHandle(self, dptr: int) -> tuple[Any, ...]:
        if dptr not in self.allocations or self.copies_on_the_way:
            return (INVALID, real.CUipcMemHandle())
        handle = real.CUipcMemHandle()
        handle.reserved = dptr.to_bytes(8, "little") * 8
        return (SUCCESS, handle)

    def cuIpcOpenMemHandle(self, handle: Any, Flags: int) -> tuple[Any, ...]:
        address = int.from_bytes(handle.reserved[:8], "little")
        if address not in self.allocations or Flags != 1:
            return (real.CUresult.CUDA_ERROR_INVALID_HANDLE, real.CUdeviceptr(0))
        return (SUCCESS, real.CUdeviceptr(address))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    fake = FakeDriver()
    monkeypatch.setattr(driver, "_driver_api", lambda: fake)
    return fake


@pytest.fixture
def as_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.as_tensor as torch's CUDA build has it, for the memory of the fake."""

    def as_tensor(lent: Any, *, device: torch.device) -> torch.Tensor:
        interface = lent.__cuda_array_interface__
        address, read_only = interface["data"]
        (size,) = interface["shape"]
        assert device == CUDA
        assert interface == {
            "version": 3, "shape": (size,), "typestr": "|u1", "strides": None, "data": (address, False)
        }  # fmt: skip
        assert not read_only
        return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)

    monkeypatch.setattr(device.torch, "as_tensor", as_tensor)


CALLS = [name for name, _ in inspect.getmembers(FakeDriver, inspect.isfunction) if name.startswith("cu")]


@pytest.mark.parametrize("name", CALLS)
def test_the_fakes_calls_take_what_the_real_ones_take(name: str) -> None:
    signature = re.match(r"\w+\((.*)\)", getattr(real, name).__doc__)
    assert signature is not None
    expected = [part.partition(":")[0].split()[-1] for part in signature[1].split(",") if part]
    assert list(inspect.signature(getattr(FakeDriver, name)).parameters)[1:] == expected


@pytest.mark.usefixtures("as_tensor")
def test_a_round_trip_through_device_memory(fake: FakeDriver, demo: Path, in_memory: Path) -> None:
    held = hold(settings_for(demo, in_memory, dtype="bfloat16", device="cuda:1"), "cuda:1", "weights-g1")
    assert fake.context == "context of device 1"
    assert [len(memory) for memory in fake.allocations.values()] == [99328] * 4
    assert list(in_memory.iterdir()) == [held.manifest]
    layers = open_layers(held.manifest, CUDA)
    checkpoint = Checkpoint.open(demo)
    for index, (name, layer) in enumerate(layers.items()):
        assert name == f"tiny/layers.{index}"
        assert layer.router.data_ptr() == list(fake.allocations)[index]
        for tensor, loaded in zip(
            layer.tensors.values(), checkpoint.load(index, "cpu", torch.bfloat16).tensors.values(), strict=True
        ):
            assert torch.equal(tensor, loaded)


def test_too_little_device_memory_is_named_before_any_is_taken(fake: FakeDriver, demo: Path, in_memory: Path) -> None:
    fake.free_bytes = 4 * 198656 - 1
    message = (
        "cuda:1: the weights of 4 layers take 794624 bytes, and 794623 of 2147483648 are free; a device with more "
        "memory or fewer model.layers are needed"
    )
    with pytest.raises(WeightsError) as caught:
        hold(settings_for(demo, in_memory, device="cuda:1"), "cuda:1", "weights-g1")
    assert str(caught.value) == message
    assert "cuMemAlloc" not in fake.calls
    assert list(in_memory.iterdir()) == []


def test_memory_that_another_process_took_first_is_given_back_and_named(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = DeviceBlocks(CUDA)
    fake.free_bytes = 2048
    monkeypatch.setattr(fake, "cuMemGetInfo", lambda: (SUCCESS, 4096, 8192))
    with pytest.raises(WeightsError, match="cuda:1: the weights of 3 layers take 3072 bytes, and 4096 of 8192 are"):
        blocks.reserve([1024, 1024, 1024])
    assert fake.calls.count("cuMemAlloc") == 3
    assert len(fake.allocations) == 2
    blocks.release()
    assert (fake.allocations, fake.free_bytes) == ({}, 2048)


@pytest.mark.usefixtures("as_tensor")
def test_a_handle_whose_holder_has_ended_is_named(fake: FakeDriver, demo: Path, in_memory: Path) -> None:
    held = hold(settings_for(demo, in_memory, device="cuda:1"), "cuda:1", "weights-g1")
    fake.allocations.popitem()
    with pytest.raises(WeightsError) as caught:
        open_layers(held.manifest, CUDA)
    assert str(caught.value) == (
        f"{held.manifest}: tiny/layers.3: its memory on cuda:1 cannot be mapped: cuIpcOpenMemHandle answered "
        "CUDA_ERROR_INVALID_HANDLE; is its holder alive?"
    )


def test_a_block_that_torch_would_copy_is_refused(
    fake: FakeDriver, demo: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = hold(settings_for(demo, in_memory, device="cuda:1"), "cuda:1", "weights-g1")
    copied = torch.zeros(198656, dtype=torch.uint8)
    monkeypatch.setattr(device.torch, "as_tensor", lambda _lent, device: copied)  # noqa: ARG005
    assert len(fake.allocations) == 4
    with pytest.raises(WeightsError, match="its memory lies on another device than cuda:1: torch copied it"):
        open_layers(held.manifest, CUDA)


def test_other_refusals_name_the_call(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "cuMemAlloc", lambda _bytesize: (INVALID, real.CUdeviceptr(0)))
    with pytest.raises(driver.CudaError, match="cuMemAlloc answered CUDA_ERROR_INVALID_VALUE"):
        DeviceBlocks(CUDA).reserve([0])


def test_without_cuda_bindings_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    with pytest.raises(WeightsError, match="lent through cuda-bindings, which comes with torch's CUDA build: "):
        Driver(0)
