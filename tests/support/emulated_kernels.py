"""The Hopper form's kernels on the CPU: their device code, compiled by g++ over emulated/ptx.cuh."""

from __future__ import annotations

import ctypes
import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from played_driver import Listener

from fdmoe_kernels import Fault
from fdmoe_kernels.hopper import build
from fdmoe_kernels.hopper.params import Params, TensorMap

COMPILER = "g++"
_HERE = Path(__file__).parent / "emulated"
# what g++ cannot read outside of ptx.cuh and mma.cuh
_REPLACED = (
    (r"asm volatile\(.*\);", ";"),
    (r"extern __shared__ __align__\(1024\) u8 memory\[\];", "u8* memory = cta->memory;"),
)


@functools.cache
def library(directory: Path, kernel: str, fault: Fault) -> ctypes.CDLL:
    """One with `launch(Params*, grid)` for a kernel, "token" or "layer". `directory` is where it is built."""
    folder = directory / f"{kernel}-fault-{int(fault)}"
    folder.mkdir()
    for name, text in build.sources().items():
        for pattern, replacement in _REPLACED:
            text = re.sub(pattern, replacement, text)
        (folder / name).write_text(text)
    for file in _HERE.iterdir():
        (folder / file.name).write_text(file.read_text())
    built = folder / f"{kernel}.so"
    flags = ("-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-DFAULT={int(fault)}")
    flags += ("-fsanitize=bounds-strict", "-fsanitize-undefined-trap-on-error")  # an index outside of its array
    made = subprocess.run(
        (COMPILER, *flags, "-o", built, folder / f"{kernel}.cc"), capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    loaded = ctypes.CDLL(str(built))
    assert loaded.params_bytes() <= ctypes.sizeof(Params)
    return loaded


def tensor_map(
    tensor: torch.Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...], **_: bool
) -> TensorMap:
    """What Plan asks the driver for, as emulated/ptx.cuh reads it."""
    made = TensorMap()
    made.words[0], made.words[1] = tensor.data_ptr(), len(sizes)
    made.words[2 : 2 + len(sizes)] = sizes
    made.words[8 : 8 + len(strides)] = strides
    made.words[12] = sum(count << 16 * i for i, count in enumerate(box[:4]))
    assert box[4:] in ((), (1,))
    return made


class Shown(ctypes.Structure):
    """A line that a CTA's first warp has stored: what it waits for and for how many, and how often it has looked."""

    _fields_ = [(name, ctypes.c_int) for name in ("cta", "wait", "target", "looks")]


@dataclass
class Emulator(Listener):
    """A driver that runs launches."""

    directory: Path = Path()

    def lines(self, fault: Fault) -> list[Shown]:
        """All that were stored since they were last asked for, by launches of the build with `fault`."""
        found = (Shown * 10_000)()
        return found[: library(self.directory, "token", fault).lines_shown(found, len(found))]

    def hold_logits(self, looks: int) -> None:
        """The next launch's logits are not there before CTAs have looked for them so often, or it is aborted."""
        library(self.directory, "token", Fault.NONE).hold_logits(looks)

    def route_items_seen(self, experts: int, logits: int) -> int:
        """What a CTA's line says of `logits` of all logits that it has seen, in route items."""
        return int(library(self.directory, "token", Fault.NONE).route_items_seen(experts, logits))

    def cuLaunchKernel(self, *arguments: int) -> tuple[int]:
        answer = super().cuLaunchKernel(*arguments)
        self._run(arguments[0], arguments[1])
        return answer

    def cuLaunchKernelEx(self, config: Any, function: int, address: int, extra: int) -> tuple[int]:
        answer = super().cuLaunchKernelEx(config, function, address, extra)
        self._run(function, config.gridDimX)
        return answer

    def _run(self, function: int, grid: int) -> None:
        fault, one = divmod(function - 77, 10)
        kernel = library(self.directory, "token" if one else "layer", Fault(fault))
        kernel.launch(ctypes.byref(self.params[-1]), grid)
