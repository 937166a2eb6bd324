"""The journal of a search: a JSON line for each candidate, before and after it was tried.

A candidate that was begun and has no end took the process with it: a later run does not try it again.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

State = Literal["measured", "slow", "wrong", "failed"]


class JournalError(ValueError):
    """The journal cannot be gone on with; the message says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a candidate gave. relative: its time over that of the first row of its cell, None if it has none; slow: from
    a few runs only, which were enough."""

    state: State
    relative: float | None
    latency_us: float | None
    note: str = ""

    @property
    def time(self) -> float:
        return float("inf") if self.relative is None else self.relative


class Journal:
    """Appends to `path`, flushed line by line. With `resume` what it holds is in `results`: cell -> (row, result)s."""

    def __init__(self, path: Path, origin: dict[str, str], *, resume: bool) -> None:
        self.results: dict[str, list[tuple[dict[str, int], Result]]] = {}
        lines = _whole_lines(path) if resume and path.exists() else []
        if lines:
            self._read(lines, path, origin)
            self._file: TextIO = path.open("a")
        else:
            self._file = path.open("w")
            self._write({"origin": origin})

    def begin(self, cell: str, row: dict[str, int]) -> None:
        self._write({"begin": cell, "row": row})

    def end(self, cell: str, row: dict[str, int], result: Result) -> None:
        self._write({"end": cell, "row": row} | asdict(result))

    def interrupted(self, cell: str, row: dict[str, int]) -> None:
        """The user ended it, not the candidate: it will be tried again."""
        self._write({"interrupted": cell, "row": row})

    def close(self) -> None:
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, lines: list[str], path: Path, origin: dict[str, str]) -> None:
        open_rows: dict[tuple[str, str], dict[str, int]] = {}
        for number, text in enumerate(lines, start=1):
            try:
                line = json.loads(text)
                if number == 1:
                    if line["origin"] != origin:
                        raise JournalError(f"{path} is of {line['origin']}, this run of {origin}; both must agree")
                    continue
                cell = next(line[kind] for kind in ("begin", "end", "interrupted") if kind in line)
                key = cell, json.dumps(line["row"], sort_keys=True)
                open_rows.pop(key, None)
                if "begin" in line:
                    open_rows[key] = line["row"]
                elif "end" in line:
                    result = Result(line["state"], line["relative"], line["latency_us"], line["note"])
                    self.results.setdefault(cell, []).append((line["row"], result))
            except (json.JSONDecodeError, KeyError, TypeError, StopIteration) as error:
                raise JournalError(f"{path}, line {number} is {text!r}; no line of a journal") from error
        for (cell, _), row in open_rows.items():
            died = Result("failed", None, None, "the process ended while it was tried")
            self.results.setdefault(cell, []).append((row, died))


def _whole_lines(path: Path) -> list[str]:
    """The lines that were written to their end; what follows is cut off."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return whole.decode().splitlines()
