"""Manifests and files that are not what they should be are named, with what is wrong with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lending import settings_for

from fdmoe_ops.weights.borrower import open_layers
from fdmoe_ops.weights.errors import WeightsError
from fdmoe_ops.weights.files import FileBlocks
from fdmoe_ops.weights.holder import hold

CPU = torch.device("cpu")


@pytest.fixture
def manifest(demo: Path, in_memory: Path) -> Path:
    return hold(settings_for(demo, in_memory), "cpu", "weights-g1").manifest


def refusal(manifest: Path, device: torch.device = CPU) -> str:
    """What open_layers says, without the directory."""
    with pytest.raises(WeightsError) as caught:
        open_layers(manifest, device)
    return str(caught.value).replace(f"{manifest.parent}/", "")


def second(manifest: dict[str, Any]) -> Any:
    return manifest["layers"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "a manifest of format 2; this program reads format 1"),
        (lambda m: m.pop("format"), "not a manifest of weights: Object missing required field `format`"),
        (
            lambda m: m.update(device="cuda:1"),
            "holds weights on cuda:1; this process computes on cpu",
        ),
        (
            lambda m: m.update(dtype="int8"),
            "not a manifest of weights: Invalid enum value 'int8' - at `$.dtype`",
        ),
        (
            lambda m: m.update(holder=7),
            "not a manifest of weights: Object contains unknown field `holder`",
        ),
        (
            lambda m: second(m).pop("shared_experts"),
            "not a manifest of weights: Object missing required field `shared_experts` - at `$.layers[1]`",
        ),
        (
            lambda m: second(m)["routing"].update(top_k=0),
            "not a manifest of weights: top_k is 0; at least 1 expert is chosen per token - at "
            "`$.layers[1].routing`",
        ),
        (
            lambda m: second(m)["routing"].update(top_k=9),
            "tiny/layers.1: top_k is 9; the layer has 8 experts",
        ),
        (
            lambda m: second(m)["block"].update(name="../weights-g1-1.bin"),
            r"not a manifest of weights: Expected `str` matching regex '^weights[0-9]*-g[0-9]+-[0-9]+\\.bin$' - at "
            "`$.layers[1].block.name`",
        ),
        (
            lambda m: second(m)["block"].update(name="weights-g1-9.bin"),
            "tiny/layers.1: weights-g1-9.bin: No such file or directory",
        ),
        (
            lambda m: second(m).update(block={"kind": "cuda_ipc", "handle": "A" * 86 + "=="}),
            "tiny/layers.1: its memory is a CUDA allocation; this process computes on cpu",
        ),
        (
            lambda m: second(m)["tensors"]["down"].update(offset=133120 + 256),
            "tiny/layers.1: down ends at byte 198912 of a block of 198656",
        ),
        (
            lambda m: second(m)["tensors"]["down"].update(offset=128),
            "not a manifest of weights: Expected `int` that's a multiple of 256 - at "
            "`$.layers[1].tensors[...].offset`",
        ),
        (
            lambda m: second(m)["tensors"]["down"].update(shape=[8, 32, 64]),
            "tiny/layers.1: gate_up has shape (8, 64, 64); router [8, 64], down [.., .., 64] and 0 shared experts ask "
            "for (8, 128, 64)",
        ),
        (
            lambda m: second(m)["tensors"].pop("router"),
            "tiny/layers.1: MoELayer.__init__() missing 1 required positional argument: 'router'",
        ),
        (
            lambda m: second(m)["tensors"].update(gate=second(m)["tensors"]["router"]),
            "tiny/layers.1: MoELayer.__init__() got an unexpected keyword argument 'gate'",
        ),
    ],
)  # fmt: skip
def test_manifests_that_do_not_fit(manifest: Path, change: Callable[[Any], Any], message: str) -> None:
    content = json.loads(manifest.read_bytes())
    change(content)
    manifest.write_text(json.dumps(content))
    assert refusal(manifest) == f"weights-g1.json: {message}"


def test_a_truncated_a_foreign_and_an_absent_manifest(manifest: Path) -> None:
    manifest.write_bytes(manifest.read_bytes()[:-200])
    assert refusal(manifest) == "weights-g1.json: not a manifest of weights: Input data was truncated"
    manifest.write_bytes(b"\x7fELF")
    assert refusal(manifest).startswith("weights-g1.json: not a manifest of weights: JSON is malformed")
    manifest.unlink()
    assert refusal(manifest) == "weights-g1.json: No such file or directory"


def test_a_truncated_a_longer_and_a_foreign_file(manifest: Path) -> None:
    block = manifest.with_name("weights-g1-2.bin")
    where = "weights-g1.json: tiny/layers.2: weights-g1-2.bin: "
    with block.open("r+b") as file:
        file.truncate(198655)
        assert refusal(manifest) == where + "198655 bytes; the manifest promises a file of 198656"
        file.truncate(198657)
        assert refusal(manifest) == where + "198657 bytes; the manifest promises a file of 198656"
    block.unlink()
    block.symlink_to(manifest.with_name("weights-g1-1.bin"))
    assert refusal(manifest) == where + "Too many levels of symbolic links"


def test_a_holder_that_fails_half_way_leaves_no_file(demo: Path, in_memory: Path) -> None:
    # the third file is there already, whoever made it
    (in_memory / "weights-g4-2.bin").symlink_to(in_memory / "elsewhere")
    with pytest.raises(FileExistsError):
        hold(settings_for(demo, in_memory), "cpu", "weights-g4")
    (in_memory / "weights-g5.partial").touch()
    with pytest.raises(FileExistsError):
        hold(settings_for(demo, in_memory), "cpu", "weights-g5")
    assert [file.name for file in in_memory.iterdir()] == ["weights-g5.partial"]


def test_too_much_for_the_tmpfs_is_refused_before_it_is_filled(in_memory: Path) -> None:
    blocks = FileBlocks(in_memory, "weights-g4")
    with pytest.raises(WeightsError) as caught:
        blocks.reserve([4096, 1 << 60])
    assert f"{in_memory}: the weights of 2 layers take {4096 + (1 << 60)} bytes, and " in str(caught.value)
    assert list(in_memory.iterdir()) == []


def test_a_tmpfs_that_others_filled_meanwhile_is_named_too(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # no blocks: what a tmpfs without a limit says
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_bavail=0, f_frsize=4096, f_blocks=0))
    blocks = FileBlocks(in_memory, "weights-g4")
    with pytest.raises(WeightsError, match=f"{in_memory}: the weights of 2 layers take {4096 + (1 << 60)} bytes, and"):
        blocks.reserve([4096, 1 << 60])
    blocks.release()
    assert list(in_memory.iterdir()) == []
