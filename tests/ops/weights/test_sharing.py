"""Weights are in memory once, and nobody who borrows them can change them."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lending import settings_for

from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.weights.borrower import open_layers
from fdmoe_ops.weights.holder import hold

CPU = torch.device("cpu")


@pytest.fixture
def manifest(demo: Path, in_memory: Path) -> Path:
    return hold(settings_for(demo, in_memory), "cpu", "weights-g1").manifest


def test_two_borrowers_map_the_same_pages_and_only_to_read(manifest: Path) -> None:
    one, two = open_layers(manifest, CPU), open_layers(manifest, CPU)
    for number, name in enumerate(one):
        file = manifest.with_name(f"weights-g1-{number}.bin")
        mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(file.name)]
        assert [(permissions, int(inode)) for _, permissions, _, _, inode, _ in mapped] == [
            ("r--s", file.stat().st_ino)
        ] * 2
        for layer in (one[name], two[name]):
            # the router's last number, seen through every mapping of the page that it is in
            with file.open("r+b") as holder:
                holder.seek(8 * 64 * 4 - 4)
                holder.write(bytes.fromhex("0000c03f"))
            assert layer.router[7, 63] == 1.5
        assert one[name].router.data_ptr() != two[name].router.data_ptr()


def test_a_borrower_that_writes_dies_and_its_sibling_does_not_notice(manifest: Path, demo: Path) -> None:
    layer = open_layers(manifest, CPU)["tiny/layers.0"]
    program = (
        "import sys, torch; from pathlib import Path; from fdmoe_ops.weights.borrower import open_layers\n"
        "layer = open_layers(Path(sys.argv[1]), torch.device('cpu'))['tiny/layers.0']\n"
        "print(layer.down.abs().sum() > 0, flush=True)\n"
        "layer.down.fill_(0)\n"
        "print('written', flush=True)"
    )
    child = subprocess.run(
        [sys.executable, "-P", "-c", program, str(manifest)],
        stdout=subprocess.PIPE, text=True, timeout=60, env={"PYTHONPATH": ":".join(sys.path[1:])}, check=False,
    )  # fmt: skip
    assert (child.stdout, child.returncode) == ("tensor(True)\n", -signal.SIGSEGV)
    assert torch.equal(layer.down, Checkpoint.open(demo).load(0, "cpu", torch.float32).down)


def test_no_warning_and_no_other_warning_is_silenced(manifest: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_layers(manifest, CPU)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["something else"]
