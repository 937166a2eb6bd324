"""The rows of a result, and its CSV file, which is written row by row so that a run that ends early keeps them."""

from __future__ import annotations

import csv
import io
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO, get_args, get_type_hints

from fdmoe_kernels.bench.peers import Mode

Key = tuple[str, int, str, str]


class ResultError(ValueError):
    """A file is no result, or not the one that a run may go on with; the message says what it has."""


@dataclass(frozen=True, slots=True)
class Row:
    """One cell. Times are medians in microseconds; None where there is nothing to compare with.

    latency_us       in turns with the baseline, which takes less power: from some milliseconds on this is a cooler
                     chip; eager with the allocation of the result
    best_peer_ratio  best_peer_us / latency_us          speedup      baseline_us / latency_us
    beats_share      (with beats - without) / without: medians of runs of that pair alone
    power_w          of the board, the mean of about the last second of that pair's runs; None where NVML does not tell
    floor_share      floor_us / latency_us              operations   GPU operations of one call
    relative_error   ||y - float32|| / ||float32||, over at most 512 tokens of the batch
    """

    model: str
    tokens: int
    dtype: str
    mode: Mode
    latency_us: float
    baseline_us: float | None
    best_peer_us: float | None
    floor_us: float
    operations: int
    relative_error: float
    best_peer: str | None
    best_peer_ratio: float | None
    no_beats_us: float
    beats_share: float
    power_w: int | None
    speedup: float | None
    floor_share: float
    tflops: float
    weight_gbps: float
    baseline_operations: int
    baseline_relative_error: float
    device: str
    versions: str
    commit: str
    command: str

    @property
    def steady_us(self) -> float:
        """Launched back to back with itself: the chip is as warm, and its clocks as low, as it makes them."""
        return self.no_beats_us * (1 + self.beats_share)

    @property
    def key(self) -> Key:
        return self.model, self.tokens, self.dtype, self.mode

    @property
    def origin(self) -> tuple[str, str, str]:
        return self.device, self.versions, self.commit


COLUMNS = [field.name for field in fields(Row)]
_TYPES = get_type_hints(Row)


def read_rows(path: Path) -> list[Row]:
    """All rows of a result. Raises ResultError for a file with other columns, and for a value that is none."""
    return _parse(path.read_text(), path)


def _parse(text: str, path: Path) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if reader.fieldnames != COLUMNS:
        raise ResultError(f"{path} has the columns {reader.fieldnames}; {COLUMNS} are needed")
    return [_row(values, f"{path}, line {reader.line_num}") for values in reader]


def _row(values: dict[str, str], where: str) -> Row:
    found: dict[str, Any] = {}
    for name, kind in _TYPES.items():
        text = values[name]
        kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if text == "" and type(None) in kinds:
            found[name] = None
            continue
        convert = next((number for number in (int, float) if number in kinds), str)
        try:
            found[name] = convert(text)
        except (TypeError, ValueError) as error:
            raise ResultError(f"{where}: {name} is {text!r}; a number is needed") from error
    return Row(**found)


class RowWriter:
    """Appends rows to a CSV. `done` holds the keys of the rows it had before."""

    def __init__(self, file: TextIO, kept: list[Row]) -> None:
        self._file = file
        self._writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        self._kept = kept
        self.done = {row.key for row in kept}
        self._writer.writeheader()
        for row in kept:
            self._writer.writerow(asdict(row))
        file.flush()

    def write(self, row: Row) -> None:
        """Raises ResultError if the kept rows come from another device, other versions or another commit."""
        if self._kept and self._kept[0].origin != row.origin:
            raise ResultError(
                f"the file's rows are of {self._kept[0].origin}, this one of {row.origin}; both must agree"
            )
        self._writer.writerow(asdict(row))
        self._file.flush()


@contextmanager
def open_rows(path: Path | None, *, resume: bool) -> Iterator[RowWriter]:
    """A writer on `path`, or on standard output without one. With `resume` it keeps the rows that are there, but for
    a last line that was not written to its end."""
    if path is None:
        yield RowWriter(sys.stdout, [])
        return
    kept: list[Row] = []
    if resume and path.exists():
        text = path.read_text()
        kept = _parse(text[: text.rfind("\n") + 1], path) if "\n" in text else []
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        writer = RowWriter(file, kept)
        os.replace(part, path)  # the rows it had are never less than whole
        yield writer
