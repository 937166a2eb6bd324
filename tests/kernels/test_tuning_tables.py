"""The tuning tables: what they hold, which one a device takes, and what is said of a bad one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from moe_layers import random_layer

from fdmoe_kernels.tiles import PRECISIONS, TRITON, Tiles, fit_layer, rows_for, tiles_for
from fdmoe_kernels.tuning.forms import FORMS
from fdmoe_kernels.tuning.tables import (
    FOLDER,
    TableError,
    check_file,
    file_names,
    pinned,
    pinned_form,
    read_rows,
    rows_of,
    write_rows,
)

SMALL = Tiles(rows=16, up_columns=32, up_depth=64, down_columns=64, down_depth=64, warps=4, stages=2)
LARGE = replace(SMALL, rows=64, programs=2)
ROWS = ((6.0, SMALL), (float("inf"), LARGE))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_every_table_is_valid(path: Path) -> None:
    check_file(path, FORMS)
    assert any(read_rows(path, form, "half") for form in FORMS.values())


@pytest.mark.parametrize(
    ("family", "device", "names"),
    [
        (
            "cuda",
            "NVIDIA H200 NVL",
            ["nvidia-h200-nvl.json", "nvidia-h200.json", "nvidia.json", "default-cuda.json"],
        ),
        ("cuda", None, ["default-cuda.json"]),
        ("hip", "MI300X", ["mi300x.json", "default-hip.json"]),
        ("interpreter", "NVIDIA H200", ["interpreter.json"]),
    ],
)
def test_a_device_takes_its_own_table_first(family: Any, device: str | None, names: list[str]) -> None:
    assert file_names(family, device) == names


def test_a_table_without_a_form_or_precision_leaves_it_to_the_default(tmp_path: Path) -> None:
    write_rows(tmp_path / "nvidia-h200.json", TRITON, "half", ROWS, description="")
    write_rows(tmp_path / "default-cuda.json", TRITON, "single", ROWS[1:], description="")
    assert rows_of(TRITON, "half", "cuda", "NVIDIA H200", tmp_path) == ROWS
    assert rows_of(TRITON, "single", "cuda", "NVIDIA H200", tmp_path) == ROWS[1:]
    assert rows_of(TRITON, "half", "cuda", "NVIDIA L4", tmp_path) == ()


@pytest.mark.parametrize("family", ["cuda", "hip", "interpreter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_family_dtype_and_precision_has_rows_for_every_batch(
    family: Any, dtype: torch.dtype, precision: Any
) -> None:
    bounds = [bound for bound, _ in rows_for(family, dtype, precision)]
    assert bounds == sorted(bounds)
    assert bounds[-1] == float("inf")


def test_one_token_has_rows_of_its_own_where_a_table_has_them() -> None:
    h200, other = ("NVIDIA H200", "NVIDIA L4")
    several = rows_for("cuda", torch.bfloat16, device=h200)
    alone = rows_for("cuda", torch.bfloat16, device=h200, alone=True)
    assert [bound for bound, _ in alone] == [float("inf")]
    assert alone[0][1].down_columns < several[0][1].down_columns
    assert rows_for("cuda", torch.bfloat16, device=other, alone=True) == rows_for("cuda", torch.bfloat16, device=other)
    assert rows_for("cuda", torch.float32, device=h200, alone=True) == rows_for("cuda", torch.float32, device=h200)


def test_what_is_written_is_read_back_beside_the_rows_of_others(tmp_path: Path) -> None:
    path = tmp_path / "nvidia-h200.json"
    write_rows(path, TRITON, "single", ROWS[1:], description="first")
    write_rows(path, TRITON, "half", ROWS, description="second")
    assert read_rows(path, TRITON, "half") == ROWS
    assert read_rows(path, TRITON, "single") == ROWS[1:]
    assert json.loads(path.read_text())["description"] == "second"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_table_that_would_be_bad_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "nvidia-h200.json"
    write_rows(path, TRITON, "half", ROWS, description="good")
    before = path.read_bytes()
    with pytest.raises(TableError, match=r"row 1: warps is 3; one of 1, 2, 4, 8, 16 is needed"):
        write_rows(path, TRITON, "half", [(float("inf"), replace(SMALL, warps=3))], description="bad")
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def _table(*rows: Any) -> dict[str, Any]:
    return {"description": "", "forms": {"triton": {"half": list(rows)}}}


_LAST = {"tokens_per_expert": None} | asdict(SMALL)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (_table(_LAST | {"rows": 24}), "t.json, triton half, row 1: rows is 24; one of 16, 32, 64, 128, 256 is needed"),
        (_table(_LAST | {"rows": 16.0}), "t.json, triton half, row 1: rows is 16.0; one of 16, 32, 64, 128, 256"),
        (_table(_LAST | {"rows": True}), "t.json, triton half, row 1: rows is True"),
        (_table(_LAST | {"depth": 16}), "t.json, triton half, row 1: depth is no field of triton; rows, up_columns,"),
        (_table({k: v for k, v in _LAST.items() if k != "warps"}), "row 1: warps is missing; one of 1, 2, 4, 8, 16"),
        (_table(_LAST | {"tokens_per_expert": 6}), "row 1: tokens_per_expert is 6; null is needed, for the last row"),
        (_table(_LAST, _LAST), "row 1: tokens_per_expert is None; a number above 0 is needed"),
        (
            _table(_LAST | {"tokens_per_expert": 6}, _LAST | {"tokens_per_expert": 6}, _LAST),
            "t.json, triton half, row 2: tokens_per_expert is 6; a number above 6 is needed",
        ),
        (_table(3), "t.json, triton half, row 1 is 3; an object with tokens_per_expert is needed"),
        (
            {"forms": {"triton": {"quarter": []}}},
            "t.json, triton: 'quarter' is unknown; half, half-alone, single, tf32x3, tf32 are allowed",
        ),
        ({"forms": {"cutlass": {}}}, "t.json, forms: 'cutlass' is unknown; triton"),
        ({"rows": []}, "t.json: 'rows' is unknown; description, forms are allowed"),
        ({}, "t.json: forms is None; an object of objects is needed"),
        ([], "t.json is a list; an object is needed"),
    ],
)
def test_a_bad_table_is_named_with_row_value_and_what_is_allowed(document: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(document))
    with pytest.raises(TableError) as error:
        check_file(path, FORMS)
    assert message in str(error.value)


def test_a_torn_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"forms": ')
    with pytest.raises(TableError, match=r"t\.json is no JSON: Expecting value"):
        read_rows(path, TRITON, "half")


def test_a_pinned_row_is_what_launches_take() -> None:
    layer = random_layer(4, 64, 32, 2)
    usual = tiles_for(layer, 5)
    with pinned(TRITON, SMALL):
        assert pinned_form() == "triton"
        assert tiles_for(layer, 5) == fit_layer(SMALL, layer) != usual
        with pinned(TRITON, LARGE):
            assert tiles_for(layer, 5) == fit_layer(LARGE, layer)
        assert tiles_for(layer, 5) == fit_layer(SMALL, layer)
    assert pinned_form() is None
    assert tiles_for(layer, 5) == usual


def test_candidates_differ_by_one_step_of_one_field() -> None:
    candidates = TRITON.candidates(SMALL)
    assert replace(SMALL, rows=32) in candidates
    assert replace(SMALL, up_depth=32) in candidates
    assert replace(SMALL, stages=3) in candidates
    assert SMALL not in candidates
    for candidate in candidates:
        changed = [name for name, value in asdict(candidate).items() if value != getattr(SMALL, name)]
        assert len(changed) == 1
