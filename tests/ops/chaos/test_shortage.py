"""Memory that a process does not get: a limit on a running one, and a GPU that somebody else has filled."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
import torch

from fdmoe_ops.chaos.shortage import hoard, limit, mapped_bytes

MIB = 1 << 20
# says whether 64 MiB are to be had, once for each line of input
GREEDY = """
import mmap, sys
for _ in sys.stdin:
    try:
        mmap.mmap(-1, 64 << 20).close()
        print("had", flush=True)
    except OSError:
        print("refused", flush=True)
"""


def test_a_limit_holds_until_it_is_undone() -> None:
    process = subprocess.Popen(
        (sys.executable, "-c", GREEDY), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    with process:

        def ask() -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        assert ask() == "had"
        before = resource.prlimit(process.pid, resource.RLIMIT_AS)
        undo = limit(process.pid, resource.RLIMIT_AS, mapped_bytes(process.pid) + 32 * MIB)
        assert ask() == "refused"
        undo()
        assert (ask(), resource.prlimit(process.pid, resource.RLIMIT_AS)) == ("had", before)
        assert process.stdin is not None
        process.stdin.close()
    undo()  # of a process that is gone


@pytest.mark.gpu
def test_a_hoard_leaves_nothing_on_the_gpu_and_gives_all_back() -> None:
    torch.zeros(1, device="cuda")
    free, _ = torch.cuda.mem_get_info()
    undo = hoard("cuda:0")
    left, _ = torch.cuda.mem_get_info()
    undo()
    again, _ = torch.cuda.mem_get_info()
    assert left < 64 * MIB < free
    assert again > free - 64 * MIB
