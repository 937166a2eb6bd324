"""A file system without room, in earnest: all that a tree writes, its log too, is on a small one that fills up.

A game day limits the size of files instead, which nobody must be root for; what the kernel says then is another word.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, read_events

_SIZE = "96m"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of its own."""
    directory = tmp_path / "small"
    directory.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("mount is not installed")
    mount = ("mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(directory))
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a file system can be mounted by root alone: {mounted.stderr.strip()}")
    yield directory
    # lazily: where the test has failed, somebody may still have a file open
    subprocess.run(("umount", "--lazy", str(directory)), check=True)


def fill(path: Path) -> None:
    """Write until the file system has no room for a page more."""
    with path.open("wb", buffering=0) as file:
        while (room := os.fstatvfs(file.fileno())).f_bavail:
            # others write meanwhile
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), room.f_bavail * room.f_bsize)


def test_a_file_system_that_is_full_costs_no_request(
    small_disk: Path, demo: Path, blocks: list[torch.nn.Module]
) -> None:
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = blocks[1](x[None])[0]
    pool = Pool("demo/layers.1", "FP32", 64, (x.numpy().tobytes(),), (expected,))
    tree = Tree(
        small_disk, "--enable-chaos", f"--model-path={demo}", "--model-name=demo", "--model-layers=1", "--devices=cpu",
        "--arena-size-bytes=16MiB", "--recovery-cooldown-initial-s=0.2", "--recovery-backoff-max-s=0.2",
        "--recovery-restart-budget=1000", "--worker-max-batch-tokens=16", run_dir=small_disk / "run",
    )  # fmt: skip
    last = 0.0

    def came(name: str) -> list[str]:
        found = (event for event in read_events(tree) if event["at"] > last and event["event"] == name)
        return [str(event.get("reason", "")) for event in found]

    def whole() -> bool:
        status = tree.status()
        return status["path"] == "fused" and {worker["state"] for worker in status["workers"]} == {"ready"}

    try:
        tree.wait_until_ready()
        tree.wait_until("the fused path", whole)
        with Load(tree.gateway_address, pool, clients=2) as load:
            tree.wait_until("answers", lambda: len(load.sent) >= 4)
            last = read_events(tree)[-1]["at"]
            fill(small_disk / "filler")
            tree.arm("stall")
            tree.wait_until("the recovery", lambda: came("recovery"))
            assert "[Errno 28] No space left on device" in tree.wait_until(
                "words about the record", lambda: came("flight_record_lost")
            )[0]  # fmt: skip
            tree.wait_until("the fused path", whole)
            tree.arm("kill-standby")
            # what the last one left may be room enough to start, and not to go on
            refused = tree.wait_until(
                "words about the standby", lambda: came("worker_not_started") or came("worker_failed")
            )
            assert "[Errno 28] No space left on device" in refused[0]
            count = len(load.sent)
            tree.wait_until("answers without a standby", lambda: len(load.sent) > count + 4)
            (small_disk / "filler").unlink()
            tree.wait_until("a standby", whole)
        assert [sent for sent in load.sent if sent.failed or sent.retries or sent.wrong] == []
        assert tree.stop() == 0
    finally:
        tree.end()
