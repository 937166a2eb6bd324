"""The builds that tell which beat costs what: made of lines that are in the kernel, once each."""

from __future__ import annotations

import beat_parts
import pytest
import torch

from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hopper import build


def test_a_build_lacks_its_parts_and_nothing_else() -> None:
    whole = build.sources()
    assert beat_parts.sources(frozenset(beat_parts._PARTS)) == whole
    for part, (name, line) in beat_parts._PARTS.items():
        files = beat_parts.sources(frozenset(beat_parts._PARTS) - {part})
        assert {file for file, text in files.items() if text != whole[file]} == {name}
        assert len(whole[name]) - len(files[name]) == len(line) - (1 if line.endswith(";") else len("false"))


def test_every_build_is_another() -> None:
    made = [tuple(beat_parts.sources(parts).items()) for parts in beat_parts.builds()]
    assert len(set(made)) == len(made) == 2 * len(beat_parts._PARTS) + 2


def test_only_what_is_loaded_meanwhile_is_built_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, alone = build.sources(), frozenset({"a beat an item"})
    expected = beat_parts.sources(alone)
    monkeypatch.setattr(build, "_loaded", {(0, torch.bfloat16, Fault.NONE): "the shipped build"})
    with beat_parts.built(alone):
        assert not build._loaded
        assert build.sources() == expected != whole
        build._loaded[0, torch.bfloat16, Fault.NONE] = "another build"
    assert not build._loaded
    assert build.sources() == whole


def test_a_line_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(beat_parts._PARTS, "a beat an item", ("token.cuh", "beat_no_more();"))
    with pytest.raises(ValueError, match=r"a beat an item is 0 times in token\.cuh; it must be once: beat_no_more"):
        beat_parts.sources(frozenset())
