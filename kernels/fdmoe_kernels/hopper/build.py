"""Compiles device/layer.cu with NVRTC, which torch's CUDA build brings, and loads it.

One build serves every shape and token count: shapes, tiles and the routing rule are run-time values. What makes another
build is the dtype and, for drills, the fault. Builds are kept on disk (cache.py), so that a restarted worker does not
compile again, and one that finds them there needs no NVRTC.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import torch

from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import capturing
from fdmoe_kernels.hopper import cache
from fdmoe_kernels.hopper.driver import BuildError, checked, on_device, told_as_build_errors

_SOURCES = Path(__file__).parent / "device"
# token counts of a matrix product's tile: padded_width() in params.cuh
WIDTHS = (8, 16, 32, 64, 80, 96, 128, 144, 176, 192, 208, 224, 240, 256)
SHARED_BYTES = 232448  # of a CTA: all there are; params.cuh has the same
_HALVES = {torch.bfloat16: "HALF_BF16", torch.float16: "HALF_FP16"}


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
    files, flags = sources(), options(dtype, fault)
    # torch's CUDA version stands for NVRTC's, which torch pins to it: to ask NVRTC itself is to need it
    path = cache.path_of((files, flags, torch.version.cuda))
    cubin = cache.read(path)
    if cubin is None:
        with told_as_build_errors():
            cubin = _compile(files, flags)
        cache.write(path, cubin)
    return cubin


def _compile(files: dict[str, str], flags: list[str]) -> bytes:
    from cuda.bindings import nvrtc

    headers = {name: text for name, text in files.items() if name != "layer.cu"}
    texts, names = [text.encode() for text in headers.values()], [name.encode() for name in headers]
    program = checked(nvrtc.nvrtcCreateProgram(files["layer.cu"].encode(), b"layer.cu", len(headers), texts, names))
    try:
        (result,) = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        # NVRTC writes into what it is given: a bytearray, for a bytes object may be shared with others
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = bytearray(checked(nvrtc.nvrtcGetProgramLogSize(program)))
            checked(nvrtc.nvrtcGetProgramLog(program, log))
            text = log.rstrip(b"\0").decode(errors="replace").strip()
            raise BuildError(f"layer.cu did not compile: {text}")
        cubin = bytearray(checked(nvrtc.nvrtcGetCUBINSize(program)))
        checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin)


class Kernels(NamedTuple):
    """Handles of a loaded build: of the layer for any number of tokens, and for one."""

    layer: int
    token: int


_loaded: dict[tuple[int, torch.dtype, Fault], Kernels | str] = {}  # the handles, or why there are none
_loading = threading.Lock()


def load_layer(device_index: int, dtype: torch.dtype, fault: Fault) -> Kernels:
    """The loaded kernels' handles on the CUDA device of that index. Raises BuildError, and the next time again without
    another try: a compile takes seconds."""
    key = (device_index, dtype, fault)
    with _loading:
        found = _loaded.get(key)
        if found is None:
            try:
                found = _load(device_index, dtype, fault)
            except BuildError as error:
                if capturing(torch.device("cuda", device_index)):  # it may be the capture that refuses
                    raise
                found = str(error)
            _loaded[key] = found
    if isinstance(found, str):
        raise BuildError(found)
    return found


def _load(device_index: int, dtype: torch.dtype, fault: Fault) -> Kernels:
    cubin = compile_layer(dtype, fault)
    with on_device(device_index), told_as_build_errors():
        from cuda.bindings import driver

        module = checked(driver.cuModuleLoadData(cubin), "cuModuleLoadData")
        shared = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        functions = [
            checked(driver.cuModuleGetFunction(module, name), "cuModuleGetFunction")
            for name in (b"moe_layer", b"moe_layer_token")
        ]
        for function in functions:
            checked(driver.cuFuncSetAttribute(function, shared, SHARED_BYTES), "cuFuncSetAttribute")
        return Kernels(*map(int, functions))
