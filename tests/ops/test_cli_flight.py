"""`fdmoe flight list` and `show`: words for people, the document for programs, reasons for damaged files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from fdmoe_ops.cli import app
from fdmoe_watchdog import flight

VERDICT = (
    "CTA 17 waits in down, expert 93, tile (0, 4), for 1 of 6 up tiles: CTA 52 took up, expert 93, tile (0, 2) 412 ms "
    "ago and does not finish it; launch 7 of demo/layers.3 with 16 tokens: 1 waiting, 1 working, 1 left, of 3 CTAs"
)


def slot(cta: int, state: str, phase: str | int, **changes: object) -> dict[str, object]:
    return {
        "cta": cta, "launch": 7, "ticket": cta, "phase": phase, "expert": 93, "row_tile": 0, "column_tile": 4,
        "wait": "none", "target": 0, "seen": 0, "items": 4, "state": state, "unchanged_s": 0.4123,
    } | changes  # fmt: skip


DOCUMENT: dict[str, Any] = {
    "format": 2, "at": "2030-01-02T03:04:05.678+00:00", "worker": "a", "generation": 2, "pid": 4711, "cause": "stall",
    "verdict": VERDICT, "launch": 7, "layer": 1, "tokens": 16, "quiet_s": 0.0612, "begun_s_ago": 0.25,
    "stall_after_s": 0.05, "learned_gap_s": 0.0125, "exit_code": None,
    "page": {"pid": 4711, "abort": 0, "ended": 6, "exit": "done", "items": [1, 2, 3, 4], "stage": "serving"},
    "causes": [{"kind": "held", "ctas": [52], "waiter": 17, "waiting": 1}],
    "slots": [
        slot(17, "waiting", "down", wait="up_tiles", target=6, seen=5),
        slot(52, "working", "up", column_tile=2),
        slot(3, "left", "left"), slot(4, "left", "left"), slot(5, "waiting", "combine"),
    ],
    "context": {"layer": "demo/layers.3", "experts": 128, "top_k": 8, "dtype": "BF16", "device": "cuda:0"},
    "versions": {"fdmoe": "1.2.3"},
    "events": [{"at": "2030-01-02T03:04:04.100+00:00", "event": "route", "worker": "a", "generation": 2}],
    "left_out": {},
}  # fmt: skip
FRAME = '  File "' + "directory/" * 9 + 'engine.py", line 160 in _synchronize'
APPENDED: dict[str, Any] = {
    "host": {"load": "0.50 0.40 0.30 2/345 6789"},
    "expert_tokens": {"0": 0, "93": 12, "7": 4, "8": 0},
    "in_flight": {"count": 3, "requests": ["a-7", "9f3a1c2e5b6d-1a"]},
    "stacks": {
        "python": f"Current thread 0x01 (most recent call first):\n{FRAME}\n",
        "process": {"pid": 4711, "count": 2, "threads": [
            {"tid": 4711, "name": "python", "state": "R", "user_s": 12.5, "system_s": 0.25, "voluntary_switches": 7},
            {"tid": 4712, "name": "cuda-EvtHandlr", "state": "S", "waits_in": "do_sys_poll"},
        ]},
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def _invoke(directory: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["flight", *arguments, "--flight-dir", str(directory)])


def _lines(result: Result) -> list[str]:
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.stdout.splitlines()]


def test_the_list_fits_80_columns_and_ends_with_the_newest(tmp_path: Path) -> None:
    flight.save(tmp_path, DOCUMENT)
    flight.save(tmp_path, DOCUMENT | {"cause": "frozen", "context": {}, "tokens": 4096, "worker": "b"})
    lines = _lines(_invoke(tmp_path, "list"))
    assert lines == [
        "id  time            worker  cause   layer     tokens  verdict",
        "1   01-02 03:04:05  a       stall   layers.3  16      CTA 17 waits in down, exp…",
        "2   01-02 03:04:05  b       frozen  layer 1   4096    CTA 17 waits in down, exp…",
    ]
    assert max(map(len, lines)) == 80


def test_a_wider_terminal_shows_more_of_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    flight.save(tmp_path, DOCUMENT)
    assert _lines(_invoke(tmp_path, "list"))[1].endswith(VERDICT)


def test_no_records(tmp_path: Path) -> None:
    assert _lines(_invoke(tmp_path / "nothing", "list")) == [f"no flight records in {tmp_path}/nothing"]
    assert json.loads(_invoke(tmp_path, "list", "--json").stdout) == []
    for arguments in (("show", "latest"), ("show", "1")):
        result = _invoke(tmp_path, *arguments)
        assert (result.exit_code, result.stderr) == (2, f"error: no flight records in {tmp_path}\n")


def test_the_directory_is_that_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FDMOE_FLIGHT_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert _lines(CliRunner().invoke(app, ["flight", "list"])) == [f"no flight records in {tmp_path}/fdmoe/flights"]
    monkeypatch.setenv("FDMOE_FLIGHT_DIR", str(tmp_path / "other"))
    assert _lines(CliRunner().invoke(app, ["flight", "list"])) == [f"no flight records in {tmp_path}/other"]


def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = _invoke(tmp_path / "file", "list")
    assert (result.exit_code, result.stderr) == (2, f"error: flight_dir is {tmp_path}/file: Not a directory\n")


def test_damaged_and_foreign_records_are_listed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "flight-2026-01-02T030407.678Z-a-g2-9.json").write_text('{"format": 1}')
    good = flight.save(tmp_path, DOCUMENT)
    bad = flight.save(tmp_path, DOCUMENT)
    bad.write_bytes(bad.read_bytes()[:100])
    assert _lines(_invoke(tmp_path, "list")) == [
        "id  time            worker  cause  layer     tokens  verdict",
        "-   -               -       -      -         -       unreadable, see below",
        "1   01-02 03:04:05  a       stall  layers.3  16      CTA 17 waits in down, expe…",
        "2   -               -       -      -         -       unreadable, see below",
        "unreadable: flight-2026-01-02T030407.678Z-a-g2-9.json: format 1; this program reads 2",
        f"unreadable: {bad.name}: no JSON: Input data was truncated",
    ]
    assert json.loads(_invoke(tmp_path, "list", "--json").stdout) == [
        {"id": "flight-2026-01-02T030407.678Z-a-g2-9.json", "file": "flight-2026-01-02T030407.678Z-a-g2-9.json",
         "unreadable": "format 1; this program reads 2"},
        {"id": "1", "file": good.name, "at": "2030-01-02T03:04:05.678+00:00", "worker": "a", "generation": 2,
         "cause": "stall", "layer": "demo/layers.3", "tokens": 16, "verdict": VERDICT},
        {"id": "2", "file": bad.name, "unreadable": "no JSON: Input data was truncated"},
    ]  # fmt: skip
    for name in ("2", "latest", bad.name):
        result = _invoke(tmp_path, "show", name)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"error: {bad}: no JSON: Input data was truncated\n"


def test_a_record_in_plain_words(tmp_path: Path) -> None:
    flight.save(tmp_path, DOCUMENT | {"verdict": "of another launch"})
    path = flight.save(tmp_path, DOCUMENT)
    flight.append(path, APPENDED)
    lines = _lines(_invoke(tmp_path, "show", "latest"))
    assert lines == [
        "CTA 17 waits in down, expert 93, tile (0, 4), for 1 of 6 up tiles: CTA 52 took",
        "up, expert 93, tile (0, 2) 412 ms ago and does not finish it; launch 7 of",
        "demo/layers.3 with 16 tokens: 1 waiting, 1 working, 1 left, of 3 CTAs",
        "",
        "time      2030-01-02T03:04:05.678+00:00",
        "cause     stall",
        "worker    a, generation 2, pid 4711",
        "launch    7, begun 0.25 s before",
        "layer     demo/layers.3, 16 tokens",
        "shape     experts=128 top_k=8 dtype=BF16 device=cuda:0",
        "silence   0.0612 s without a beat; the stall time was 0.05 s, the longest",
        "          silence of a good launch 0.0125 s",
        "requests  3 in flight: a-7, 9f3a1c2e5b6d-1a and 1 more",
        "experts   93: 12, 7: 4, 0: 0, 8: 0 tokens (the busiest of 4; 2 have none)",
        "page      abort=0 ended=6 exit=done items=[1, 2, 3, 4] stage=serving",
        "host      0.50 0.40 0.30 2/345 6789",
        "versions  fdmoe=1.2.3",
        "",
        "CTAs concerned",
        "CTA  state    phase  expert  tile    waits for  seen  unchanged",
        " 17  waiting  down       93  (0, 4)  up tiles    5/6    0.412 s",
        " 52  working  up         93  (0, 2)  -             -    0.412 s",
        "the others: 2 left, 1 waiting in combine",
        "",
        "last events",
        "time          event  details",
        "03:04:04.100  route  worker=a generation=2",
        "",
        "threads, 2 of 2",
        "thread  name            state  in the kernel     user  system  switches",
        "4711    python          R      -              12.50 s  0.25 s         7",
        "4712    cuda-EvtHandlr  S      do_sys_poll          -       -         -",
        "",
        "Python stacks",
        "Current thread 0x01 (most recent call first):",
        FRAME,  # not folded
        "",
        f"record: {path}",
    ]
    assert _lines(_invoke(tmp_path, "show", "2")) == lines == _lines(_invoke(tmp_path, "show", path.name))
    assert _lines(_invoke(tmp_path, "show", "1"))[0] == "of another launch"
    assert json.loads(_invoke(tmp_path, "show", "2", "--json").stdout) == DOCUMENT | APPENDED
    flight.append(path, {"exit_code": -9})
    ended = _lines(_invoke(tmp_path, "show", "2"))
    assert ended == [*lines[:7], "ended     by SIGKILL", *lines[7:]]


def test_a_record_without_a_launch_says_no_more_than_it_knows(tmp_path: Path) -> None:
    keys = ("format", "at", "worker", "generation", "pid", "cause", "verdict", "launch", "layer", "tokens", "quiet_s",
            "begun_s_ago", "page")  # fmt: skip
    path = flight.save(tmp_path, {key: DOCUMENT[key] for key in keys} | {"launch": 0, "verdict": "frozen", "page": {}})
    assert _lines(_invoke(tmp_path, "show", "latest")) == [
        "frozen", "", "time     2030-01-02T03:04:05.678+00:00", "cause    stall", "worker   a, generation 2, pid 4711",
        "launch   none", "layer    layer 1, 16 tokens", "silence  0.0612 s without a beat", "", f"record: {path}",
    ]  # fmt: skip


def test_many_ctas_are_counted_and_the_unreadable_are_shown(tmp_path: Path) -> None:
    slots = [slot(number, "working", "up") for number in range(40)] + [slot(90, "unreadable", 77)]
    cause = {"kind": "held", "ctas": [2], "waiter": None, "waiting": 0}
    flight.save(tmp_path, DOCUMENT | {"slots": slots, "causes": [cause]})
    lines = _lines(_invoke(tmp_path, "show", "latest"))
    assert lines[lines.index("CTAs concerned") + 2 :][:3] == [
        "  2  working     up         93  (0, 4)  -             -    0.412 s",
        " 90  unreadable  77         93  (0, 4)  -             -    0.412 s",
        "the others: 39 working in up",
    ]
    flight.save(tmp_path, DOCUMENT | {"slots": slots, "causes": [cause | {"ctas": list(range(40))}]})
    lines = _lines(_invoke(tmp_path, "show", "latest"))
    assert [line.split()[0] for line in lines if " working  up " in line] == [str(number) for number in range(12)]
    assert "the others: 28 working in up, 1 unreadable in 77" in lines


def test_an_unknown_record(tmp_path: Path) -> None:
    for _ in range(3):
        flight.save(tmp_path, DOCUMENT)
    result = _invoke(tmp_path, "show", "9")
    assert result.exit_code == 2
    assert result.stderr == (
        "error: record is '9'; allowed: latest, or an id of `fdmoe flight list`, from 1 to 3\n"
    )  # fmt: skip


def test_nothing_in_a_record_moves_the_cursor(tmp_path: Path) -> None:
    evil = "\x1b[2J[red]\r\x07 \ud800"
    events = [{"at": evil, "event": evil, evil: evil}]
    raw = json.dumps(DOCUMENT | {"cause": evil[:-1], "events": json.loads(json.dumps(events).replace("\\ud800", ""))})
    (tmp_path / "flight-000001-20300102T030405.678Z-a-g2-7.json").write_text(raw)
    for arguments in (("list",), ("show", "latest")):
        output = _invoke(tmp_path, *arguments).stdout
        assert "?[2J" in output
        assert not set(output) & set("\x1b\r\x07")
    assert "cause     ?[2J[red]??" in _invoke(tmp_path, "show", "latest").stdout


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
# documents of the right types with any values, and documents with some values of any type
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
NUMBER = st.integers(-(2**63), 2**64 - 1)
VALUES = st.dictionaries(TEXT, JSON, max_size=3)
RIGHT = st.fixed_dictionaries(
    {},
    optional={
        "at": TEXT, "worker": TEXT, "verdict": TEXT, "cause": TEXT, "launch": NUMBER, "tokens": NUMBER,
        "quiet_s": st.floats(allow_nan=False, allow_infinity=False), "context": VALUES, "page": VALUES,
        "events": st.lists(VALUES, max_size=3), "host": VALUES, "expert_tokens": st.dictionaries(TEXT, NUMBER),
        "slots": st.lists(st.builds(slot, NUMBER, TEXT, TEXT | NUMBER), max_size=3),
        "stacks": st.none() | st.fixed_dictionaries({"python": TEXT}),
    },
)  # fmt: skip
NEARLY = st.dictionaries(st.sampled_from(flight.Record.__struct_fields__), JSON, max_size=3)


CONTENT = st.binary(max_size=200) | (RIGHT | NEARLY | JSON).map(
    lambda value: json.dumps(DOCUMENT | value if isinstance(value, dict) else value).encode()
)


@given(content=CONTENT)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_whatever_a_file_holds_it_is_listed_and_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "flight-000001-20300102T030405.678Z-a-g2-7.json"
    path.write_bytes(content)
    for options in ((), ("--json",)):
        listed = _invoke(tmp_path, "list", *options)
        assert (listed.exit_code, listed.exception) == (0, None)
    unreadable = "unreadable" in json.loads(listed.stdout)[0]
    for options in ((), ("--json",)):
        shown = _invoke(tmp_path, "show", "1", *options)
        assert shown.exit_code == int(unreadable), shown.output
        assert shown.exception is None or isinstance(shown.exception, SystemExit)
        assert shown.stderr.startswith(f"error: {path}: ") == unreadable
