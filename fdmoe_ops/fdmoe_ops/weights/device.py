"""Blocks on a GPU: plain device memory, lent through CUDA IPC. The holder copies into it and computes nothing there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from fdmoe_ops.weights.driver import CudaError, Driver
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.weights.manifest import CudaAllocation


class DeviceBlocks:
    """The holder's side: one allocation a layer, there for as long as the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._driver = Driver(device.index)
        self._addresses: list[int] = []
        self._sizes: tuple[int, ...] = ()

    def reserve(self, sizes: Sequence[int]) -> None:
        """Take the memory of all blocks. Raises WeightsError where there is not enough; `release` what was taken."""
        free, total = self._driver.memory()
        self._sizes, wanted = tuple(sizes), sum(sizes)
        refusal = WeightsError(
            f"{self._device}: the weights of {len(sizes)} layers take {wanted} bytes, and {free} of {total} are free; "
            "a device with more memory or fewer model.layers are needed"
        )
        if wanted > free:
            raise refusal
        for size in sizes:
            address = self._driver.allocate(size)
            if address is None:
                raise refusal
            self._addresses.append(address)

    def release(self) -> None:
        for address in self._addresses:
            self._driver.free(address)
        self._addresses.clear()

    @contextmanager
    def fill(self, number: int) -> Iterator[torch.Tensor]:
        """Host memory, uint8, for block `number`; what is in it at the end is copied to the device."""
        host = torch.empty(self._sizes[number], dtype=torch.uint8)
        yield host
        self._driver.copy_to_device(self._addresses[number], host.data_ptr(), host.numel())

    def lend(self, number: int) -> CudaAllocation:
        return CudaAllocation(self._driver.export(self._addresses[number]))


class _Lent:
    """Device memory as torch takes it from others: the CUDA array interface, version 3."""

    def __init__(self, address: int, size_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (size_bytes,),
            "typestr": "|u1",
            "strides": None,
            # not read-only: torch refuses the flag
            "data": (address, False),
        }


def open_block(driver: Driver, allocation: CudaAllocation, size_bytes: int, device: torch.device) -> torch.Tensor:
    """The holder's allocation as uint8 [size_bytes] on `device`, which is current. Raises WeightsError."""
    try:
        address = driver.open(allocation.handle)
    except CudaError as error:
        raise WeightsError(f"its memory on {device} cannot be mapped: {error}; is its holder alive?") from error
    # the tensor's storage keeps the object; the mapping itself stays until the process ends
    block = torch.as_tensor(_Lent(address, size_bytes), device=device)
    if block.data_ptr() != address:
        raise WeightsError(f"its memory lies on another device than {device}: torch copied it")
    return block
