"""The Hopper form's builds: what the compiler makes of them, where they are kept, and what happens where one cannot be
had. NVRTC needs no GPU."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fdmoe_kernels import BuildError, Fault, hardware
from fdmoe_kernels.hopper import build, cache

HALVES = [torch.bfloat16, torch.float16]
EMPTY = "\n".join(f'extern "C" __global__ void {name}() {{}}' for name in ("moe_layer", "moe_layer_token"))


def _disassembled(cubin: bytes, tmp_path: Path, kernel: str | None = None) -> list[str]:
    import triton

    path = tmp_path / "layer.cubin"
    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    text = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    if kernel is not None:
        text = re.split(r"Function : ", text.split(f"Function : {kernel}\n")[1])[0]
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", text)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_products_run_on_tensor_cores_without_a_spill(dtype: torch.dtype, tmp_path: Path) -> None:
    lines = _disassembled(build.compile_layer(dtype), tmp_path, "moe_layer")
    products = [(i, m[1]) for i, line in enumerate(lines) if (m := re.search(r"HGMMA\.64x(\d+)x16\.F32", line))]
    # a loop of four products for each width and no other copy of it
    assert sorted(int(width) for _, width in products) == sorted(width for width in build.WIDTHS for _ in range(4))
    for first in range(0, len(products), 4):
        loop = lines[products[first][0] : products[first + 3][0]]
        assert not [line for line in loop if re.search(r"\b(LDL|STL)\b", line)]
    # a handful where a tile's results are finished, and no more
    assert len([line for line in lines if re.search(r"\b(LDL|STL)\b", line)]) <= 20


def test_rows_of_weights_are_in_registers_while_they_are_on_their_way(tmp_path: Path) -> None:
    lines = _disassembled(build.compile_layer(torch.bfloat16), tmp_path, "moe_layer_token")
    loads = [i for i, line in enumerate(lines) if "LDG.E.NA.LTC256B.128" in line]
    # a batch is loaded in a piece: nothing is put aside between its loads
    batches = [pair for pair in itertools.pairwise(loads) if pair[1] - pair[0] < 40]
    assert len(batches) > len(loads) / 2
    between = [line for first, last in batches for line in lines[first:last]]
    assert not [line for line in between if re.search(r"\b(LDL|STL)\b", line)]
    assert not [line for line in lines if re.search(r"\b(LDL|STL)\b", line)], "nothing is spilled anywhere"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_results_are_put_down_only_once_all_have_read_those_of_the_item_before(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    """Between a product and the next store of results to shared memory the warpgroup meets, for every width and for up
    and down tiles alike."""
    lines = _disassembled(build.compile_layer(dtype), tmp_path)
    kinds = [
        kind
        for line in lines
        for kind, pattern in (("product", r"\bHGMMA\b"), ("store", r"\bSTSM\b"), ("barrier", r"\bBAR\.SYNC"))
        if re.search(pattern, line)
    ]
    runs = [kind for i, kind in enumerate(kinds) if i == 0 or kinds[i - 1] != kind]
    assert "store" in runs
    assert ("product", "store") not in set(itertools.pairwise(runs))
    # each up and each down tile's first store has a barrier of its own before it, and one after
    stores = runs.count("store")
    assert runs.count("barrier") > stores >= 2 * len(build.WIDTHS)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_threads_that_gather_wait_for_their_copies_before_they_leave(dtype: torch.dtype, tmp_path: Path) -> None:
    text = "\n".join(_disassembled(build.compile_layer(dtype), tmp_path))
    assert re.search(r"LDGDEPBAR\s*\n.*DEPBAR\.LE SB0, 0x0(?s:.{0,200})\bEXIT\b", text)


def _small(monkeypatch: pytest.MonkeyPatch, directory: Path, source: str = EMPTY) -> None:
    monkeypatch.setattr(build, "sources", lambda: {"layer.cu": source})
    monkeypatch.setenv("FDMOE_CACHE_DIR", str(directory))


def test_a_build_is_kept_on_disk_and_a_disk_that_refuses_costs_only_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _small(monkeypatch, tmp_path / "cache")
    first = build.compile_layer(torch.bfloat16)
    (kept,) = (tmp_path / "cache").iterdir()
    cache.write(kept, b"what the disk holds")
    assert build.compile_layer(torch.bfloat16) == b"what the disk holds"
    assert build.compile_layer(torch.float16) == first  # another build, another file
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FDMOE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert build.compile_layer(torch.bfloat16) == first


@pytest.mark.parametrize("damage", [b"", b"short", "cut", "flipped"], ids=str)
def test_a_damaged_file_counts_as_none_and_is_written_anew(
    damage: bytes | str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _small(monkeypatch, tmp_path)
    first = build.compile_layer(torch.bfloat16)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if damage == "cut":
        damage = whole[: len(whole) // 2]
    elif damage == "flipped":
        damage = whole[:-1] + bytes([whole[-1] ^ 1])
    assert isinstance(damage, bytes)
    path.write_bytes(damage)
    assert build.compile_layer(torch.bfloat16) == first
    assert path.read_bytes() == whole


def test_a_file_that_cannot_be_put_in_place_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _small(monkeypatch, tmp_path)
    first = build.compile_layer(torch.bfloat16)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()  # no file goes there
    assert build.compile_layer(torch.bfloat16) == first
    assert list(tmp_path.iterdir()) == [path]


def test_what_does_not_compile_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _small(monkeypatch, tmp_path, "no such thing;")
    with pytest.raises(BuildError, match=r"(?s)layer\.cu did not compile: layer\.cu\(1\): .*no such thing") as caught:
        build.compile_layer(torch.bfloat16)
    assert str(caught.value).endswith('detected in the compilation of "layer.cu".')


def test_nvrtc_is_given_memory_of_its_own_to_write_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bytes object of one byte is the same one all over the process."""
    from cuda.bindings import nvrtc

    _small(monkeypatch, tmp_path, "no such thing;")
    monkeypatch.setattr(nvrtc, "nvrtcGetProgramLogSize", lambda *_: (nvrtc.nvrtcResult.NVRTC_SUCCESS, 1))
    given: list[object] = []

    def get_log(_: object, log: object) -> tuple[int]:
        given.append(log)
        return (0,)

    monkeypatch.setattr(nvrtc, "nvrtcGetProgramLog", get_log)
    with pytest.raises(BuildError, match="did not compile"):
        build.compile_layer(torch.bfloat16)
    assert [type(log) for log in given] == [bytearray]


_WITHOUT_NVRTC = """
import cuda.pathfinder, torch
def not_there(name, *_):
    raise cuda.pathfinder.DynamicLibNotFoundError(f"no {name} here")
cuda.pathfinder.load_nvidia_dynamic_lib = not_there
from fdmoe_kernels import BuildError
from fdmoe_kernels.hopper import build
build.sources = lambda: {"layer.cu": SOURCE}
print(len(build.compile_layer(torch.bfloat16)))
try:
    build.compile_layer(torch.float16)
except BuildError as error:
    print(error)
"""


def test_without_nvrtc_a_kept_build_serves_and_a_new_one_is_a_build_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _small(monkeypatch, tmp_path)
    kept = build.compile_layer(torch.bfloat16)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    code = _WITHOUT_NVRTC.replace("SOURCE", repr(EMPTY))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert done.stdout.splitlines() == [str(len(kept)), "DynamicLibNotFoundError: no nvrtc here"], done.stderr


def test_a_build_that_failed_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Fault] = []

    def load(_: int, __: torch.dtype, fault: Fault) -> int:
        tried.append(fault)
        if fault is Fault.NONE:
            raise BuildError("the driver is too old")
        return 9

    monkeypatch.setattr(build, "_load", load)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "capturing", lambda *_: False)
    for _ in range(2):
        with pytest.raises(BuildError, match=r"^the driver is too old$"):
            build.load_layer(0, torch.bfloat16, Fault.NONE)
        assert build.load_layer(0, torch.bfloat16, Fault.STALL) == 9
    assert tried == [Fault.NONE, Fault.STALL]


def test_what_fails_during_a_capture_is_tried_again_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    captures = [True, False]

    def load(*_: object) -> int:
        if captures[0]:
            raise BuildError("not while a graph is captured")
        return 9

    monkeypatch.setattr(build, "_load", load)
    monkeypatch.setattr(build, "_loaded", {})
    monkeypatch.setattr(build, "capturing", lambda *_: captures[0])
    with pytest.raises(BuildError, match="not while a graph is captured"):
        build.load_layer(0, torch.bfloat16, Fault.NONE)
    captures.pop(0)
    assert build.load_layer(0, torch.bfloat16, Fault.NONE) == 9


def test_without_a_package_cuda_the_hopper_form_is_not_for_the_device_and_that_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def find_spec(_: str) -> None:
        raise ModuleNotFoundError("No module named 'cuda'")

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for _ in range(2):
        assert not hardware.hopper_kernels_supported(torch.device("cuda", 77))
    (record,) = caplog.records
    assert record.getMessage() == (
        "the portable form serves instead of the Hopper form: the package cuda-bindings is not installed"
    )
