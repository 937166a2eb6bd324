"""The few calls of the CUDA driver that lending memory takes, on one device.

Not torch's allocator: it cuts tensors out of larger blocks, and an IPC handle stands for a whole allocation. Not
torch's CUDA at all in the holder: it loads modules, and the holder runs no kernel.
"""

from __future__ import annotations

from typing import Any

from fdmoe_ops.weights.errors import WeightsError


class CudaError(RuntimeError):
    """A call was refused; `code` is its CUresult."""

    def __init__(self, call: str, code: Any) -> None:
        super().__init__(f"{call} answered {getattr(code, 'name', code)}")
        self.code = code


class Driver:
    """The driver with the primary context of CUDA device `index` current in this thread.

    The primary context is the one that torch uses; it stays until the process ends. Raises WeightsError without
    cuda-bindings; all calls raise CudaError.
    """

    def __init__(self, index: int) -> None:
        self._api = _driver_api()
        self._call("cuInit", 0)
        device = self._call("cuDeviceGet", index)
        self._call("cuCtxSetCurrent", self._call("cuDevicePrimaryCtxRetain", device))

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size_bytes: int) -> int | None:
        """The address of new device memory; None where there is not enough."""
        try:
            return int(self._call("cuMemAlloc", size_bytes))
        except CudaError as error:
            if error.code == self._api.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                return None
            raise

    def free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def copy_to_device(self, address: int, host_address: int, size_bytes: int) -> None:
        """The bytes are there when this returns."""
        self._call("cuMemcpyHtoD", address, host_address, size_bytes)
        # the copy returns when pageable memory has been staged, and its last part may still be on the way
        self._call("cuCtxSynchronize")

    def export(self, address: int) -> bytes:
        """The handle, of 64 bytes, of the allocation that begins at `address`."""
        return bytes(self._call("cuIpcGetMemHandle", address).reserved)

    def open(self, handle: bytes) -> int:
        """The address of another process's allocation. It stays mapped until this process ends."""
        exported = self._api.CUipcMemHandle()
        exported.reserved = handle
        flags = self._api.CUipcMem_flags.CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS
        return int(self._call("cuIpcOpenMemHandle", exported, int(flags)))

    def _call(self, name: str, *arguments: Any) -> Any:
        code, *values = getattr(self._api, name)(*arguments)
        if code != self._api.CUresult.CUDA_SUCCESS:
            raise CudaError(name, code)
        return values[0] if len(values) == 1 else values


def _driver_api() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise WeightsError(
            f"weights in GPU memory are lent through cuda-bindings, which comes with torch's CUDA build: {error}"
        ) from error
    return driver
