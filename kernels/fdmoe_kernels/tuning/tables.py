"""Reading, choosing and writing tuning tables, and holding a form to one row while it is measured."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from fdmoe_kernels.hardware import Family
from fdmoe_kernels.tuning.form import Form, R

# of the numbers: 16 bits, float32 by IEEE arithmetic, float32 on tensor cores by three products, or by one;
# alone: 16 bits, one token, which has fewer tiles than there are multiprocessors
Kind = Literal["half", "half-alone", "single", "tf32x3", "tf32"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FOLDER = Path(__file__).parent
_BOUND = "tokens_per_expert"


class TableError(ValueError):
    """A tuning table is not as it must be; the message names file, row, value and what is allowed."""


def file_names(family: Family, device: str | None) -> list[str]:
    """The tables for a device, the most special first: 'NVIDIA H200 NVL' takes nvidia-h200-nvl.json, else
    nvidia-h200.json, else the family's default. The interpreter has one of its own, wherever it runs."""
    if family == "interpreter":
        return ["interpreter.json"]
    words = slug(device).split("-") if device else []
    return ["-".join(words[:count]) + ".json" for count in range(len(words), 0, -1)] + [f"default-{family}.json"]


def slug(device: str) -> str:
    """A device's name as part of a file's."""
    return "-".join("".join(c if c.isalnum() else " " for c in device.lower()).split())


@functools.cache
def rows_of(
    form: Form[R], kind: Kind, family: Family, device: str | None, folder: Path = FOLDER
) -> tuple[tuple[float, R], ...]:
    """The rows of one form for a device, by rising bound; empty if no table of it has the form.

    Raises TableError for a table that is not as it must be.
    """
    for name in file_names(family, device):
        path = folder / name
        if path.exists() and (rows := read_rows(path, form, kind)):
            return rows
    return ()


def read_rows(path: Path, form: Form[R], kind: Kind) -> tuple[tuple[float, R], ...]:
    """One form's rows of one file; empty if it has none. Raises TableError for anything it should not hold."""
    sections = _sections(_document(path), path).get(form.name, {})
    _refuse_others(sections, KINDS, f"{path.name}, {form.name}")
    listed = sections.get(kind, [])
    where = f"{path.name}, {form.name} {kind}"
    if not isinstance(listed, list):
        raise TableError(f"{where} is {listed!r}; a list of rows is needed")
    rows = []
    bound = 0.0
    for number, values in enumerate(listed, start=1):
        last = number == len(listed)
        bound = _bound(values, f"{where}, row {number}", above=bound, last=last)
        try:
            rows.append((bound, form.parse({name: value for name, value in values.items() if name != _BOUND})))
        except ValueError as error:
            raise TableError(f"{where}, row {number}: {error}") from error
    return tuple(rows)


def check_file(path: Path, forms: Mapping[str, Form[Any]]) -> None:
    """Raises TableError unless every part of the file belongs to one of `forms` and is valid."""
    sections = _sections(_document(path), path)
    _refuse_others(sections, tuple(forms), f"{path.name}, forms")
    for name in sections:
        for kind in KINDS:
            read_rows(path, forms[name], kind)


def write_rows(path: Path, form: Form[R], kind: Kind, rows: Sequence[tuple[float, R]], *, description: str) -> None:
    """Replace one form's rows in a file, or make the file; a reader sees the old one or the new one, whole."""
    document = _document(path) if path.exists() else {"forms": {}}
    _sections(document, path).setdefault(form.name, {})[kind] = [
        {_BOUND: None if bound == float("inf") else bound} | asdict(row) for bound, row in rows
    ]
    document = {"description": description, "forms": document["forms"]}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.write_text(_text(document))
        read_rows(part, form, kind)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _text(document: Mapping[str, Any]) -> str:
    """JSON with a row a line."""
    lines = ["{", f'  "description": {json.dumps(document["description"])},', '  "forms": {']
    forms = []
    for name, sections in document["forms"].items():
        kinds = []
        for kind, rows in sections.items():
            listed = ",\n".join(f"        {json.dumps(row)}" for row in rows)
            kinds.append(f"      {json.dumps(kind)}: [\n{listed}\n      ]")
        forms.append(f"    {json.dumps(name)}: {{\n" + ",\n".join(kinds) + "\n    }")
    return "\n".join([*lines, ",\n".join(forms), "  }", "}"]) + "\n"


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise TableError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise TableError(f"{path.name} is a {type(document).__name__}; an object is needed")
    _refuse_others(document, ("description", "forms"), path.name)
    return document


def _sections(document: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    sections = document.get("forms")
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise TableError(f"{path.name}: forms is {sections!r}; an object of objects is needed")
    return sections


def _refuse_others(found: Mapping[str, Any], allowed: Sequence[str], where: str) -> None:
    for name in found:
        if name not in allowed:
            raise TableError(f"{where}: {name!r} is unknown; {', '.join(allowed)} are allowed")


def _bound(values: Any, where: str, *, above: float, last: bool) -> float:
    if not isinstance(values, dict) or _BOUND not in values:
        raise TableError(f"{where} is {values!r}; an object with {_BOUND} is needed")
    bound = values[_BOUND]
    if last:
        if bound is not None:
            raise TableError(f"{where}: {_BOUND} is {bound!r}; null is needed, for the last row serves all others")
        return float("inf")
    if isinstance(bound, bool) or not isinstance(bound, int | float) or not above < bound < float("inf"):
        raise TableError(f"{where}: {_BOUND} is {bound!r}; a number above {above:g} is needed")
    return float(bound)


_pinned: dict[str, Any] = {}


@contextmanager
def pinned(form: Form[R], row: R) -> Iterator[None]:
    """Hold the launches of this process to one row of one form, whatever the tables say: for tuning."""
    before = dict(_pinned)
    _pinned.clear()
    _pinned[form.name] = row
    try:
        yield
    finally:
        _pinned.clear()
        _pinned.update(before)


def pinned_row(form: Form[R]) -> R | None:
    """The row that `form` is held to now, if it is."""
    return _pinned.get(form.name)


def pinned_form() -> str | None:
    """The form that launches are held to now: with several, the public op has to choose this one."""
    return next(iter(_pinned), None)
