"""The Hopper form's kernel for one token on the CPU: its device code, compiled by g++ over emulated/ptx.cuh."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from played_driver import Listener

from fdmoe_kernels import Fault
from fdmoe_kernels.hopper import build
from fdmoe_kernels.hopper.params import Params

COMPILER = "g++"
_HERE = Path(__file__).parent / "emulated"


@functools.cache
def token_kernel(directory: Path, fault: Fault) -> ctypes.CDLL:
    """A library with `launch(Params*, grid)`. `directory` is where it is built."""
    folder = directory / f"fault-{int(fault)}"
    folder.mkdir()
    for name, text in build.sources().items():
        (folder / name).write_text(text)
    for file in _HERE.iterdir():
        (folder / file.name).write_text(file.read_text())
    library = folder / "token.so"
    flags = ("-std=c++20", "-O1", "-shared", "-fPIC", "-pthread", f"-DFAULT={int(fault)}")
    flags += ("-fsanitize=bounds-strict", "-fsanitize-undefined-trap-on-error")  # an index outside of its array
    made = subprocess.run(
        (COMPILER, *flags, "-o", library, folder / "token.cc"), capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    loaded = ctypes.CDLL(str(library))
    assert loaded.params_bytes() <= ctypes.sizeof(Params)
    return loaded


class Shown(ctypes.Structure):
    """A line that a CTA's first warp has stored: what it waits for and for how many, and how often it has looked."""

    _fields_ = [(name, ctypes.c_int) for name in ("cta", "wait", "target", "looks")]


@dataclass
class Emulator(Listener):
    """A driver that runs launches of the kernel for one token, and refuses all others."""

    directory: Path = Path()

    def lines(self, fault: Fault) -> list[Shown]:
        """All that were stored since they were last asked for, by launches of the build with `fault`."""
        found = (Shown * 10_000)()
        return found[: token_kernel(self.directory, fault).lines_shown(found, len(found))]

    def hold_logits(self, looks: int) -> None:
        """The next launch's logits are not there before CTAs have looked for them so often, or it is aborted."""
        token_kernel(self.directory, Fault.NONE).hold_logits(looks)

    def route_items_seen(self, experts: int, logits: int) -> int:
        """What a CTA's line says of `logits` of all logits that it has seen, in route items."""
        return int(token_kernel(self.directory, Fault.NONE).route_items_seen(experts, logits))

    def cuLaunchKernel(self, *arguments: int) -> tuple[int]:
        answer = super().cuLaunchKernel(*arguments)
        fault, kernel = divmod(arguments[0] - 77, 10)
        assert kernel == 1, "only the kernel for one token runs here"
        token_kernel(self.directory, Fault(fault)).launch(ctypes.byref(self.params[-1]), arguments[1])
        return answer
