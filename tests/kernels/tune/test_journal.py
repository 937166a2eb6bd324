"""The journal: what it keeps over the end of a process, however that came."""

from __future__ import annotations

from pathlib import Path

import pytest

from fdmoe_kernels.tune.journal import Journal, JournalError, Result

ORIGIN = {"form": "triton", "device": "NVIDIA H200"}
ONE, TWO, THREE = {"rows": 16}, {"rows": 32}, {"rows": 64}
FAST = Result("measured", 0.9, 45.0)
WRONG = Result("wrong", None, None, "error 1.00e+00; 1e-02 is allowed")


def _written(path: Path) -> Path:
    journal = Journal(path, ORIGIN, resume=False)
    journal.begin("olmoe/16", ONE)
    journal.end("olmoe/16", ONE, FAST)
    journal.begin("olmoe/64", TWO)
    journal.end("olmoe/64", TWO, WRONG)
    journal.close()
    return path


def test_what_was_tried_is_known_to_the_next_run(tmp_path: Path) -> None:
    path = _written(tmp_path / "journal")
    assert Journal(path, ORIGIN, resume=True).results == {"olmoe/16": [(ONE, FAST)], "olmoe/64": [(TWO, WRONG)]}
    assert Journal(path, ORIGIN, resume=False).results == {}


@pytest.mark.parametrize("torn", ['{"end": "olmoe/16", "row": {"ro', '{"', "\xff"])
def test_a_torn_last_line_is_cut_off_and_the_journal_goes_on(tmp_path: Path, torn: str) -> None:
    path = _written(tmp_path / "journal")
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode("latin-1"))
    journal = Journal(path, ORIGIN, resume=True)
    assert path.read_bytes() == whole
    journal.begin("olmoe/16", THREE)
    journal.end("olmoe/16", THREE, FAST)
    assert Journal(path, ORIGIN, resume=True).results["olmoe/16"] == [(ONE, FAST), (THREE, FAST)]


def test_a_candidate_that_took_the_process_with_it_is_not_tried_again(tmp_path: Path) -> None:
    path = _written(tmp_path / "journal")
    Journal(path, ORIGIN, resume=True).begin("olmoe/16", THREE)
    results = Journal(path, ORIGIN, resume=True).results["olmoe/16"]
    assert results[-1] == (THREE, Result("failed", None, None, "the process ended while it was tried"))
    assert results[-1][1].time == float("inf")


def test_a_candidate_that_the_user_interrupted_is_tried_again(tmp_path: Path) -> None:
    path = _written(tmp_path / "journal")
    journal = Journal(path, ORIGIN, resume=True)
    journal.begin("olmoe/16", THREE)
    journal.interrupted("olmoe/16", THREE)
    assert Journal(path, ORIGIN, resume=True).results["olmoe/16"] == [(ONE, FAST)]


def test_a_journal_of_another_device_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path / "journal")
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"NVIDIA H200.*NVIDIA H100.*both must agree"):
        Journal(path, ORIGIN | {"device": "NVIDIA H100"}, resume=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", ["no json", "[]", '{"row": {}}', '{"end": "olmoe/16", "row": {}}'])
def test_a_line_that_is_none_is_named(tmp_path: Path, bad: str) -> None:
    path = _written(tmp_path / "journal")
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(JournalError, match=r"line 6 is .*; no line of a journal"):
        Journal(path, ORIGIN, resume=True)
