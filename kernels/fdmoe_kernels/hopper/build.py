"""Compiles device/layer.cu with NVRTC, which torch's CUDA build brings, and loads it.

One build serves every shape and token count: shapes, tiles and the routing rule are run-time values. What makes another
build is the dtype and, for drills, the fault. Builds are kept on disk (`$FDMOE_CACHE_DIR`, else `~/.cache/fdmoe`), so
that a restarted worker does not compile again.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from fdmoe_kernels.faults import Fault

_SOURCES = Path(__file__).parent / "device"
# token counts of a matrix product's tile: padded_width() in params.cuh
WIDTHS = (8, 16, 32, 64, 96, 128, 144, 176, 208, 256)
_HALVES = {torch.bfloat16: "HALF_BF16", torch.float16: "HALF_FP16"}


class BuildError(RuntimeError):
    """NVRTC or the driver refused; the message holds what it said."""


def products() -> str:
    """mma.cuh: one wgmma instruction per width, a register for each of its accumulators.

    PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate": m64nNk16, operands K-major in shared memory.
    """
    lines = ["#pragma once", '#include "ptx.cuh"', "template <int N>"]
    lines.append("DEVICE void product(float (&sums)[N / 2], u64 weights, u64 rows);")
    for width in WIDTHS:
        count = width // 2
        registers = ", ".join(f"%{i}" for i in range(count))
        outputs = ", ".join(f'"+f"(sums[{i}])' for i in range(count))
        lines += [
            "template <>",
            f"DEVICE void product<{width}>(float (&sums)[{count}], u64 weights, u64 rows) {{",
            f'    asm volatile("wgmma.mma_async.sync.aligned.m64n{width}k16.f32." HALF_NAME "." HALF_NAME',
            f'                 " {{{registers}}}, %{count}, %{count + 1}, 1, 1, 1, 0, 0;"',
            f'                 : {outputs} : "l"(weights), "l"(rows));',
            "}",
        ]
    return "\n".join(lines) + "\n"


def sources() -> dict[str, str]:
    """All files of the build by name; layer.cu is the one to compile."""
    files = {path.name: path.read_text() for path in sorted(_SOURCES.iterdir())}
    files["mma.cuh"] = products()
    files["widths.cuh"] = "#define WIDTHS " + " ".join(f"WIDTH({width})" for width in WIDTHS) + "\n"
    return files


def options(dtype: torch.dtype, fault: Fault) -> list[str]:
    return ["--gpu-architecture=sm_90a", "--std=c++17", f"-D{_HALVES[dtype]}", f"-DFAULT={int(fault)}"]


def compile_layer(dtype: torch.dtype, fault: Fault = Fault.NONE) -> bytes:
    """The cubin, from the disk if it has been compiled before. Needs no GPU. Raises BuildError."""
    from cuda.bindings import nvrtc

    files, flags = sources(), options(dtype, fault)
    version = _checked(nvrtc.nvrtcVersion())
    digest = hashlib.sha256(repr((files, flags, version)).encode()).hexdigest()[:32]
    # without a home (a container's user may have none) the variable of that name is all there is
    directory = Path(os.environ.get("FDMOE_CACHE_DIR") or os.path.expanduser("~/.cache/fdmoe"))
    path = directory / f"layer-{digest}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        pass
    headers = {name: text for name, text in files.items() if name != "layer.cu"}
    texts, names = [text.encode() for text in headers.values()], [name.encode() for name in headers]
    program = _checked(nvrtc.nvrtcCreateProgram(files["layer.cu"].encode(), b"layer.cu", len(headers), texts, names))
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise BuildError(f"layer.cu did not compile: {log.decode(errors='replace').strip()}")
        cubin = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    _keep(path, cubin)
    return bytes(cubin)


@functools.cache
def load_layer(device_index: int, dtype: torch.dtype, fault: Fault) -> int:
    """The loaded kernel's handle on the CUDA device of that index. Raises BuildError."""
    from cuda.bindings import driver

    cubin = compile_layer(dtype, fault)
    with torch.cuda.device(device_index):
        function = _checked(driver.cuModuleGetFunction(_checked(driver.cuModuleLoadData(cubin)), b"moe_layer"))
    shared = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _checked(driver.cuFuncSetAttribute(function, shared, SHARED_BYTES))
    return int(function)


SHARED_BYTES = 232448  # of a CTA: all there are; params.cuh has the same


def _checked(returned: Any) -> Any:
    """The values of a call into cuda.bindings; its error as a BuildError."""
    error, *values = returned
    if int(error) != 0:
        raise BuildError(f"CUDA answered {error!r}")
    return values[0] if len(values) == 1 else values


def _keep(path: Path, cubin: bytes) -> None:
    """Write the build where the next process finds it; a disk that does not take it costs only that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(cubin)
        os.replace(file.name, path)
    except OSError:
        return
