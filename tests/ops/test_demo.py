"""The demo checkpoint is whole, loads in transformers, and is written all at once or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import fdmoe_ops.demo
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.demo import write_demo_model


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("parent") / "new" / "demo"
    write_demo_model(directory)
    return directory


def test_transformers_loads_every_tensor_and_generates(demo: Path) -> None:
    model, report = transformers.Qwen3MoeForCausalLM.from_pretrained(demo, output_loading_info=True)
    assert {name: list(found) for name, found in report.items() if found} == {}
    assert {"missing_keys", "unexpected_keys", "mismatched_keys"} <= report.keys()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.inference_mode():
        logits = model(torch.arange(60).reshape(2, 30)).logits
    assert logits.shape == (2, 30, 128)
    # normed states of variance 1 through rows of variance 1 / width
    assert 0.8 < logits.std().item() < 1.25


def test_layers_route_to_every_expert_and_answer_at_the_scale_of_one(demo: Path) -> None:
    model = transformers.Qwen3MoeForCausalLM.from_pretrained(demo)
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    for index in range(4):
        block = model.model.layers[index].mlp
        with torch.inference_mode():
            _, weights, chosen = block.gate(x)
            y = block(x[None])[0]
        tokens = torch.bincount(chosen.flatten(), minlength=8)
        assert tokens.sum() == 600
        assert tokens.min() >= 20, f"layer {index} gives its experts {tokens.tolist()} of 600"
        # neither one expert alone nor two alike
        assert 0.6 < weights.max(dim=-1).values.mean() < 0.95
        assert 0.2 < y.std().item() < 2


def test_it_is_a_checkpoint_that_can_be_served(demo: Path) -> None:
    checkpoint = Checkpoint.open(demo)
    checkpoint.check(checkpoint.moe_layers)
    assert (checkpoint.name, checkpoint.architecture) == ("demo", "Qwen3MoeForCausalLM")
    assert (checkpoint.moe_layers, checkpoint.dtype) == ((0, 1, 2, 3), torch.float32)


def test_same_seed_same_bytes(demo: Path, tmp_path: Path) -> None:
    write_demo_model(tmp_path / "same")
    write_demo_model(tmp_path / "other", seed=1)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "same" / name).read_bytes() == (demo / name).read_bytes()
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != (demo / "model.safetensors").read_bytes()


def test_writing_it_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from fdmoe_ops.demo import write_demo_model;"
        "write_demo_model(Path(sys.argv[1])); print(sorted({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-P", "-c", program, str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60)
    assert done.stdout == "['numpy']\n"
    assert (tmp_path / "demo" / "model.safetensors").exists()


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_demo_model(tmp_path / "empty")
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"config.json", "model.safetensors"}


def test_writing_it_again_leaves_it_as_it_is(tmp_path: Path) -> None:
    write_demo_model(tmp_path / "demo")
    before = (tmp_path / "demo" / "model.safetensors").stat()
    write_demo_model(tmp_path / "demo")
    after = (tmp_path / "demo" / "model.safetensors").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("what", ["foreign file", "changed weights", "more files", "a file"])
def test_what_is_there_is_never_overwritten(what: str, tmp_path: Path) -> None:
    target = tmp_path / "demo"
    if what == "foreign file":
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    elif what == "changed weights":
        write_demo_model(target, seed=1)
    elif what == "more files":
        write_demo_model(target)
        (target / "thesis.txt").write_text("years of work")
    else:
        target.write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError) as caught:
        write_demo_model(target)
    said = f"{target} is not empty and is not this demo model; an empty or a new directory is needed"
    assert str(caught.value) == said
    assert contents(tmp_path) == before


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fdmoe_ops.demo, "save", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write_demo_model(tmp_path / "demo")
    assert list(tmp_path.iterdir()) == []


def test_its_files_can_be_read_as_the_umask_allows(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from fdmoe_ops.demo import write_demo_model;"
        "os.umask(0o027); write_demo_model(Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-P", "-c", program, str(tmp_path / "demo")], check=True, cwd=tmp_path, timeout=60)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "demo").iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}
    assert (tmp_path / "demo").stat().st_mode & 0o777 == 0o750


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
