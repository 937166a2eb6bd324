"""Flight records on disk: whole or not at all, within bounds, in the order of saving."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdmoe_watchdog import flight, flight_store
from fdmoe_watchdog.settings import FLIGHT_RECORD_MAX_BYTES, WatchdogSettings


def document(at: str = "2026-01-02T03:04:05.678+00:00", **changes: object) -> dict[str, object]:
    return {
        "format": 2, "at": at, "worker": "a", "generation": 2, "pid": 9, "cause": "stall", "verdict": "CTA 0 waits",
        "launch": 7, "layer": 1, "tokens": 16, "quiet_s": 0.06, "begun_s_ago": 0.25, "page": {},
    } | changes  # fmt: skip


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "flights.lock")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """As another tree would hold it."""
    descriptor = os.open(directory / "flights.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def test_a_record_is_saved_for_this_user_alone_and_read_back(tmp_path: Path) -> None:
    made = document()
    path = flight.save(tmp_path / "state" / "flights", made)
    assert path.name == "flight-000001-20260102T030405.678Z-a-g2-7.json"
    assert flight.read(path) == made
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_two_stalls_within_a_millisecond_are_two_records(tmp_path: Path) -> None:
    first, second = (flight.save(tmp_path, document(quiet_s=quiet)) for quiet in (0.1, 0.2))
    assert names(tmp_path) == [first.name, second.name] == [
        "flight-000001-20260102T030405.678Z-a-g2-7.json", "flight-000002-20260102T030405.678Z-a-g2-7.json"
    ]  # fmt: skip
    assert [flight.read(path)["quiet_s"] for path in flight.stored(tmp_path)] == [0.1, 0.2]


def test_the_oldest_go_first_whatever_the_wall_clock_does(tmp_path: Path) -> None:
    bounds = WatchdogSettings(flight_keep=2)
    years = (2026, 2031, 2019, 2019)
    saved = [flight.save(tmp_path, document(f"{year}-01-02T03:04:05.678+00:00"), bounds) for year in years]
    # and whatever the file system says of their times
    os.utime(saved[-1], (0, 0))
    assert names(tmp_path) == [
        "flight-000003-20190102T030405.678Z-a-g2-7.json", "flight-000004-20190102T030405.678Z-a-g2-7.json"
    ]  # fmt: skip
    flight.save(tmp_path, document("2018-01-02T03:04:05.678+00:00"), bounds)
    assert [flight.sequence(path) for path in flight.stored(tmp_path)] == [4, 5]


def test_records_of_format_1_count_as_the_oldest(tmp_path: Path) -> None:
    old = ["flight-2026-01-02T030407.678Z-a-g2-9.json", "flight-2026-01-02T030408.678Z-a-g2-10.json"]
    for name in old:
        (tmp_path / name).write_text('{"format": 1}')
    flight.save(tmp_path, document(), WatchdogSettings(flight_keep=2))
    assert names(tmp_path) == ["flight-000001-20260102T030405.678Z-a-g2-7.json", old[1]]


def test_all_records_together_stay_within_the_bytes(tmp_path: Path) -> None:
    bounds = WatchdogSettings(flight_max_bytes=FLIGHT_RECORD_MAX_BYTES)  # type: ignore[arg-type]
    for _ in range(5):
        flight.save(tmp_path, document(verdict="x" * 300_000), bounds)
    assert [flight.sequence(path) for path in flight.stored(tmp_path)] == [3, 4, 5]
    # what is appended counts, too
    flight.append(flight.stored(tmp_path)[-1], {"stacks": {"python": "y" * 300_000}}, bounds)
    assert [flight.sequence(path) for path in flight.stored(tmp_path)] == [4, 5]


def test_a_record_has_a_ceiling_and_says_what_is_left_out(tmp_path: Path) -> None:
    slot = {"cta": 0, "launch": 7, "ticket": 1, "phase": "up", "expert": 1, "row_tile": 0, "column_tile": 0,
            "wait": "none", "target": 0, "seen": 0, "items": 0, "state": "working"}  # fmt: skip
    slots = [slot | {"cta": number} for number in range(10_000)]
    path = flight.save(tmp_path, document(slots=slots))
    assert path.stat().st_size <= FLIGHT_RECORD_MAX_BYTES
    record = flight.parse(flight.read(path))
    assert [each.cta for each in record.slots] == list(range(5000))
    assert record.left_out == {"slots": 5000}
    # a section that is appended is cut, not the record refused
    flight.append(path, {"stacks": {"python": "z" * 3_000_000}, "expert_tokens": {"0": 16}})
    assert path.stat().st_size <= FLIGHT_RECORD_MAX_BYTES
    record = flight.parse(flight.read(path))
    assert record.stacks is not None
    assert len(record.stacks.python) == 3_000_000 - record.left_out["stacks"]
    assert record.expert_tokens == {"0": 16}


NESTED: st.SearchStrategy[Any] = st.recursive(
    st.text(max_size=3),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.text(), inner, min_size=1),
    max_leaves=8,
)


@given(value=NESTED, times=st.integers(1, 6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_fits_in_the_end(monkeypatch: pytest.MonkeyPatch, value: object, times: int) -> None:
    monkeypatch.setattr(flight_store, "FLIGHT_RECORD_MAX_BYTES", 400)
    raw = flight_store._fitting(document(context={"value": [value] * times}, events=[value] * times))
    assert len(raw) <= 400
    assert json.loads(raw)["verdict"] == "CTA 0 waits"


def test_sections_are_appended_all_or_none(tmp_path: Path) -> None:
    path = flight.save(tmp_path, document())
    flight.append(path, {"expert_tokens": {3: 12, "7": 4}})
    flight.append(path, {"host": {"load": "0.1"}, "stacks": {"python": "File x", "process": None}})
    expected = {
        "expert_tokens": {"3": 12, "7": 4}, "host": {"load": "0.1"}, "stacks": {"python": "File x", "process": None},
        "left_out": {},
    }  # fmt: skip
    assert flight.read(path) == document() | expected
    flight.append(path, {"expert_tokens": {"3": 13}})
    assert flight.read(path)["expert_tokens"] == {"3": 13}
    flight.append(path, {"exit_code": -9})
    assert flight.read(path)["exit_code"] == -9
    with pytest.raises(
        ValueError,
        match="section 'verdict' cannot be appended; allowed: host, expert_tokens, stacks, in_flight, exit_code",
    ):
        flight.append(path, {"host": {}, "verdict": "another"})
    assert flight.read(path)["host"] == {"load": "0.1"}
    assert names(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o600


def test_appending_to_what_is_gone_or_damaged(tmp_path: Path) -> None:
    path = flight.save(tmp_path, document())
    path.write_text("{")
    with pytest.raises(flight.RecordError, match="no JSON"):
        flight.append(path, {"host": {}})
    path.unlink()
    with pytest.raises(FileNotFoundError):
        flight.append(path, {"host": {}})
    assert names(tmp_path) == []


def test_what_a_killed_tree_left_unfinished_is_removed(tmp_path: Path) -> None:
    (tmp_path / "flight-000001-20260102T030405.678Z-a-g2-7.json.partial").write_text("{")
    (tmp_path / "flight-2026-01-02T030407.678Z-a-g2-9.partial").write_text("{")
    (tmp_path / "notes.partial").write_text("not ours")
    path = flight.save(tmp_path, document())
    assert names(tmp_path) == [path.name, "notes.partial"]


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = flight.save(tmp_path, document())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        flight.save(tmp_path, document())
    with pytest.raises(OSError, match="No space left on device"):
        flight.append(kept, {"host": {"load": "1"}})
    assert names(tmp_path) == [kept.name]
    assert flight.read(kept) == document()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        flight.save(tmp_path / "file", document())
    with pytest.raises(OSError, match="Not a directory"):
        flight.stored(tmp_path / "file")
    assert flight.stored(tmp_path / "nothing") == []


def test_a_tree_that_holds_the_lock_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight_store, "_LOCK_DEADLINE_S", 0.05)
    with locked(tmp_path), pytest.raises(TimeoutError, match=r"has been locked by another tree for 0.05 s"):
        flight.save(tmp_path, document())
    assert flight.save(tmp_path, document()).name.startswith("flight-000001-")


def test_a_workers_name_cannot_lead_elsewhere(tmp_path: Path) -> None:
    path = flight.save(tmp_path, document(worker="../../b c"))
    assert path.name == "flight-000001-20260102T030405.678Z-.._.._b_c-g2-7.json"


def test_links_directories_and_other_files_are_no_records(tmp_path: Path) -> None:
    (tmp_path / "flight-1.json").mkdir()
    (tmp_path / "flight-2.json").symlink_to("/etc/hostname")
    (tmp_path / "notes.json").write_text("{}")
    path = flight.save(tmp_path, document(), WatchdogSettings(flight_keep=1))
    assert flight.stored(tmp_path) == [path]
    assert len(names(tmp_path)) == 4


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no JSON: Input data was truncated"),
        (b"\xff\xfe", "no JSON: JSON is malformed: invalid character (byte 0)"),
        (b"[" * 100_000, "no JSON: maximum recursion depth exceeded while deserializing an object"),
        (b"[1]", "JSON, but no flight record"),
        (b'{"format": "2"}', "JSON, but no flight record"),
        (b'{"format": 1, "verdict": "launch 7"}', "format 1; this program reads 2"),
        (b'{"format": 3}', "format 3; this program reads 2"),
        (b'{"format": 2}', "damaged: Object missing required field `at`"),
        (json.dumps(document(launch="7")).encode(), "damaged: Expected `int`, got `str` - at `$.launch`"),
        (json.dumps(document(slots=[{}])).encode(), "damaged: Object missing required field `cta` - at `$.slots[0]`"),
        (b" " * (FLIGHT_RECORD_MAX_BYTES + 1), "1048577 bytes; a record has at most 1048576"),
    ],
)
def test_files_that_are_no_record_of_this_program(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "flight-000001-x.json"
    path.write_bytes(content)
    with pytest.raises(flight.RecordError) as error:
        flight.parse(flight.read(path))
    assert str(error.value) == reason


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "flight-000001-x.json")
    with pytest.raises(flight.RecordError, match="no regular file"):
        flight.read(tmp_path / "flight-000001-x.json")


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NEARLY = st.dictionaries(st.sampled_from([*flight.Record.__struct_fields__]), JSON).map(
    lambda changes: json.dumps(document() | changes).encode()
)


@given(content=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()) | NEARLY)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_content_is_a_record_or_has_a_reason_why_not(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flight-000001-x.json"
    path.write_bytes(content)
    reason = ""
    try:
        record = flight.parse(flight.read(path))
    except flight.RecordError as error:
        reason = str(error)
    assert reason or record.format == 2
