"""Flight records on disk: written whole or not at all, kept within bounds, read with distrust.

    flight-000042-20260102T030405.678Z-a-g2-9.json     sequence, time (UTC), worker, generation, launch

The sequence counts what was ever saved in the directory, under its lock: names sort in the order of saving whatever the
wall clock does, and no two records share one. Several trees may share a directory.

Nothing is fsynced: the page cache outlives every process of the tree, and only a machine's crash would lose a record,
while on a busy disk fsync takes seconds that a kill would have to wait for.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from fdmoe_watchdog.flight_record import FORMAT, LATER, Record, plain
from fdmoe_watchdog.settings import FLIGHT_RECORD_MAX_BYTES, WatchdogSettings

_DEFAULTS = WatchdogSettings()
_NAME = re.compile(r"flight-(\d{6,12})-\d{8}T.*\.json", re.ASCII | re.DOTALL)
_LOCK = "flights.lock"
# a tree holds the lock for milliseconds; seconds mean that it is stopped, or its disk is
_LOCK_DEADLINE_S = 2.0
_LOCK_LOOK_S = 0.01


class RecordError(ValueError):
    """The file is no flight record that this program reads; the text says why."""


def save(directory: Path, document: Mapping[str, object], settings: WatchdogSettings = _DEFAULTS) -> Path:
    """Write one record, and remove the oldest beyond the bounds of `settings`. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(directory):
        number = max(map(sequence, stored(directory)), default=0) + 1
        stamp = re.sub(r"[-:]|\+00:00$", "", str(document["at"])) + "Z"
        worker = re.sub(r"[^A-Za-z0-9_.]", "_", str(document["worker"]))[:32]
        name = f"flight-{number:06d}-{stamp}-{worker}-g{document['generation']}-{document['launch']}.json"
        _write(directory / name, document)
        _sweep(directory, settings)
    return directory / name


def append(path: Path, extra: Mapping[str, object], settings: WatchdogSettings = _DEFAULTS) -> None:
    """Add sections to a saved record, all or none; one that was appended before is replaced, for the later knows more.

    Raises OSError, FileNotFoundError where the record has been removed meanwhile, RecordError where the file is none,
    and ValueError for a section that is not one of flight_record.LATER.
    """
    for section in extra:
        if section not in LATER:
            raise ValueError(f"section {section!r} cannot be appended; allowed: {', '.join(LATER)}")
    with _locked(path.parent):
        document = read(path)
        # what did not fit the last time is measured anew
        left_out = {key: count for key, count in _left_out(document).items() if key not in extra}
        _write(path, document | plain(extra) | {"left_out": left_out})
        _sweep(path.parent, settings)


def stored(directory: Path) -> list[Path]:
    """The records' files, in the order of saving. Raises OSError; a directory that does not exist holds none."""
    try:
        with os.scandir(directory) as entries:
            names = [
                entry.name
                for entry in entries
                if entry.name.startswith("flight-")
                and entry.name.endswith(".json")
                and entry.is_file(follow_symlinks=False)
            ]
    except FileNotFoundError:
        return []
    return sorted((directory / name for name in names), key=lambda path: (sequence(path), path.name))


def sequence(path: Path) -> int:
    """The record's number; 0 for a file that was not named here, which counts as the oldest."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else 0


def read(path: Path) -> dict[str, object]:
    """The record's document, which `parse` takes. Raises RecordError, or OSError where the file cannot be read."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RecordError("no regular file")
        if status.st_size > FLIGHT_RECORD_MAX_BYTES:
            raise RecordError(f"{status.st_size} bytes; a record has at most {FLIGHT_RECORD_MAX_BYTES}")
        raw = file.read()
    try:
        document = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise RecordError(f"no JSON: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise RecordError("JSON, but no flight record")
    if document["format"] != FORMAT:
        raise RecordError(f"format {document['format']}; this program reads {FORMAT}")
    return document


def parse(document: Mapping[str, object]) -> Record:
    """The document with its types. Raises RecordError where they are not those of format 2."""
    try:
        return msgspec.convert(document, Record)
    except msgspec.ValidationError as error:
        raise RecordError(f"damaged: {error}") from error


# ---- within the lock


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    deadline = time.monotonic() + _LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"{directory} has been locked by another tree for {_LOCK_DEADLINE_S:g} s") from error
            time.sleep(_LOCK_LOOK_S)
        else:
            return


def _write(path: Path, document: Mapping[str, object]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_fitting(document))
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _fitting(document: Mapping[str, object]) -> bytes:
    """The record's bytes within its ceiling: the largest section is halved as often as that takes, and says so."""
    document = dict(document)
    sizes = {key: len(_encoded(value)) for key, value in document.items()}
    left_out = _left_out(document)
    while len(raw := _encoded(document)) > FLIGHT_RECORD_MAX_BYTES:
        largest = max(sizes, key=lambda key: sizes[key])
        document[largest], less = _halved(document[largest])
        left_out[largest] = left_out.get(largest, 0) + less
        document["left_out"] = left_out
        sizes[largest] = len(_encoded(document[largest]))
    return raw


def _halved(value: object) -> tuple[object, int]:
    """The first half of a list or text; of a mapping, all but its largest entry, which is halved. How much is gone."""
    if isinstance(value, list | tuple | str):
        kept = len(value) // 2
        return value[:kept], len(value) - kept
    if isinstance(value, dict) and value:
        largest = max(value, key=lambda key: len(_encoded(value[key])))
        if isinstance(value[largest], list | tuple | str | dict) and value[largest]:
            half, less = _halved(value[largest])
            return {**value, largest: half}, less
        kept = len(value) // 2
        return dict(list(value.items())[:kept]), len(value) - kept
    raise AssertionError(f"a {type(value).__name__} is as large as a record may be")


def _left_out(document: Mapping[str, object]) -> dict[str, int]:
    value = document.get("left_out")
    return dict(value) if isinstance(value, dict) else {}


def _encoded(value: object) -> bytes:
    # a record is read by people too, when all else fails: a section a line would be nicer, and four times as large
    return json.dumps(value, separators=(",", ":")).encode()


def _sweep(directory: Path, settings: WatchdogSettings) -> None:
    """Keep the newest records within the bounds, the last one whatever its size; remove what was left unfinished."""
    for partial in directory.glob("flight-*.partial"):
        partial.unlink(missing_ok=True)
    total = 0
    for kept, path in enumerate(reversed(stored(directory))):
        total += path.stat().st_size
        if kept > 0 and (kept >= settings.flight_keep or total > settings.flight_max_bytes):
            path.unlink(missing_ok=True)
