"""Weights in device memory: allocated by a holder that runs no kernel, mapped by workers through CUDA IPC.

Each layer is an allocation of the driver's own (cuMemAlloc), so that its handle's start is the layer's: torch's
allocator would hand out parts of larger blocks. The device has the memory until the holder ends; who has mapped it may
end at any time.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from fdmoe_kernels import MoELayer
from fdmoe_ops.weights import manifest
from fdmoe_ops.weights.manifest import LayerEntry, WeightsError


class Holder:
    """The primary context of one device, made current in this thread. Raises WeightsError where it is not to be had."""

    def __init__(self, index: int) -> None:
        self._driver = _load_driver()
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", index)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", device))

    def hold(self, name: str, layer: MoELayer) -> LayerEntry:
        """Copy a layer, which is on the CPU, to the device. Raises WeightsError where there is no room."""
        _, size = manifest.place(layer)
        free, total = self._call("cuMemGetInfo")
        if size > free:
            raise WeightsError(f"layer {name} needs {size} bytes on the device; {free} of {total} are free")
        start = self._call("cuMemAlloc", size)
        handle = bytes(self._call("cuIpcGetMemHandle", start).reserved)
        entry = manifest.entry(name, layer, handle=handle.hex())
        for tensor_name, tensor in layer.tensors.items():
            to = int(start) + entry.tensors[tensor_name].offset
            self._call("cuMemcpyHtoD", to, tensor.data_ptr(), tensor.nbytes)
        # copies from pageable memory may return when the bytes are only staged
        self._call("cuCtxSynchronize")
        return entry

    def _call(self, name: str, *arguments: Any) -> Any:
        return _checked(self._driver, name, *arguments)


class _Mapped:
    """Bytes of device memory in the form that torch.as_tensor takes without a copy."""

    def __init__(self, start: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,), "typestr": "|u1", "data": (start, False), "version": 3, "strides": None,
        }  # fmt: skip


def open_memory(entry: LayerEntry, device: torch.device) -> torch.Tensor:
    """The layer's allocation on `device`, whose context torch has made. It stays mapped until the process ends.

    Raises WeightsError for a handle that cannot be opened, as when its holder has ended.
    """
    driver = _load_driver()
    try:
        raw = bytes.fromhex(entry.handle)
    except ValueError as error:
        raise WeightsError(f"layer {entry.name} has no IPC handle: {error}") from error
    handle = driver.CUipcMemHandle()
    if len(raw) != len(bytes(handle.reserved)):
        raise WeightsError(f"layer {entry.name} has an IPC handle of {len(raw)} bytes")
    ctypes.memmove(handle.getPtr(), raw, len(raw))
    start = _checked(
        driver, "cuIpcOpenMemHandle", handle, driver.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS.value
    )
    return torch.as_tensor(_Mapped(int(start), entry.size_bytes), device=device)


def _load_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise WeightsError(f"cuda.bindings is needed to share weights on a GPU: {error}") from error
    return driver


def _checked(driver: Any, name: str, *arguments: Any) -> Any:
    """The results of a call, without their status: one as itself, several as a tuple."""
    error, *results = getattr(driver, name)(*arguments)
    if error != driver.CUresult.CUDA_SUCCESS:
        raise WeightsError(f"{name} failed: {error.name}")
    return results[0] if len(results) == 1 else tuple(results)
