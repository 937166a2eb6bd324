"""Blocks on the CPU: files in the run directory, which is on tmpfs. What is in them is in memory, once for all."""

from __future__ import annotations

import mmap
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.weights.manifest import TmpfsFile
from fdmoe_watchdog.rundir import RunDirectory, RunDirectoryError


class FileBlocks:
    """The holder's side: one file a layer, <stem>-<number>.bin."""

    def __init__(self, run_dir: Path, stem: str) -> None:
        self._run_dir = run_dir
        self._stem = stem
        self._paths: list[Path] = []

    def reserve(self, sizes: Sequence[int]) -> None:
        """Take the memory of all blocks. Raises WeightsError where there is not enough; `release` what was taken."""
        tmpfs = os.statvfs(self._run_dir)
        free, wanted = tmpfs.f_bavail * tmpfs.f_frsize, sum(sizes)
        refusal = WeightsError(
            f"{self._run_dir}: the weights of {len(sizes)} layers take {wanted} bytes, and {free} are free on this "
            "tmpfs; a larger one or fewer model.layers are needed"
        )
        # a tmpfs without a limit has no blocks. Asked first, since a reservation that fails late has filled it for all
        if tmpfs.f_blocks and wanted > free:
            raise refusal
        for number, size in enumerate(sizes):
            name = f"{self._stem}-{number}.bin"
            # before it is made: a reservation that fails leaves an empty file
            self._paths.append(self._run_dir / name)
            try:
                RunDirectory(self._run_dir).reserve(name, size)
            except RunDirectoryError as error:
                raise refusal from error

    def release(self) -> None:
        """Remove the files. Processes that have mapped them keep what they have."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._paths.clear()

    @contextmanager
    def fill(self, number: int) -> Iterator[torch.Tensor]:
        """Block `number` as uint8, to be written to; keep no view of it."""
        with self._paths[number].open("r+b") as file:
            # mapped page by page as they are touched, 126 MiB took 63 ms; at once, 23 ms
            mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            yield torch.frombuffer(mapped, dtype=torch.uint8)

    def lend(self, number: int) -> TmpfsFile:
        return TmpfsFile(self._paths[number].name)


def map_read_only(path: Path, size_bytes: int) -> torch.Tensor:
    """The file as uint8 [size_bytes]. A write to it ends this process by SIGSEGV: the weights are its siblings', too.

    Raises WeightsError unless it is a regular file of that size.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsError(f"{path}: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != size_bytes:
            raise WeightsError(f"{path}: {status.st_size} bytes; the manifest promises a file of {size_bytes}")
        mapped = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)
    with warnings.catch_warnings():
        # torch has no tensors that know that they are read-only; the memory itself does
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        return torch.frombuffer(mapped, dtype=torch.uint8)
