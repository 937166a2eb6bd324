"""The beat page's layout, and readers that noise cannot break."""

from __future__ import annotations

import dataclasses
import mmap
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fdmoe_watchdog import page as beat_page
from fdmoe_watchdog.page import (
    Exit,
    ExitWord,
    Host,
    Identity,
    Launch,
    Line,
    Page,
    PageError,
    PageFile,
    Phase,
    Slot,
    SlotWord,
    Snapshot,
    Stage,
    Wait,
    parse_slots,
)  # fmt: skip

WORD = st.integers(0, 2**64 - 1)
SLOTS = 3
LINES = beat_page.FIRST_SLOT + SLOTS
# the words of each line that has a meaning, in the order of the layout
WORDS = {
    Line.IDENTITY: Identity, Line.LAUNCH: Launch, Line.EXIT: ExitWord, Line.HOST: Host,
    **dict.fromkeys(range(beat_page.FIRST_SLOT, LINES), SlotWord),
}  # fmt: skip
# what a snapshot calls a word; the words of EXIT besides ENDED are told apart below, and the slots by parse_slots
FIELDS: dict[tuple[int, int], str] = {
    (Line.IDENTITY, Identity.PID): "pid", (Line.IDENTITY, Identity.GENERATION): "generation", (Line.ABORT, 0): "abort",
    (Line.LAUNCH, Launch.BEGUN): "begun", (Line.LAUNCH, Launch.BEGUN_AT_NS): "begun_at_ns",
    (Line.LAUNCH, Launch.TOKENS): "tokens", (Line.LAUNCH, Launch.LAYER): "layer",
    (Line.LAUNCH, Launch.DEADLINE_NS): "deadline_ns", (Line.EXIT, ExitWord.ENDED): "ended",
    (Line.HOST, Host.BEATS): "host_beats", (Line.HOST, Host.ANSWERED): "answered",
    (Line.HOST, Host.BASELINE_BEGUN): "baseline_begun", (Line.HOST, Host.BASELINE_ENDED): "baseline_ended",
    (Line.HOST, Host.FUSED_BATCHES): "fused_batches", (Line.HOST, Host.BASELINE_BATCHES): "baseline_batches",
    (Line.GATEWAY, 0): "submitted",
}  # fmt: skip
# all but those that make it a page
PLACES = [
    (line, word)
    for line in range(LINES)
    for word in range(beat_page.LINE_WORDS)
    if line != Line.IDENTITY or word not in (Identity.MAGIC, Identity.VERSION, Identity.SLOTS)
]
ITEMS = (ExitWord.ROUTE, ExitWord.UP, ExitWord.DOWN, ExitWord.COMBINE)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that make a page for each example."""
    return tmp_path_factory.mktemp("page") / "page"


def test_what_a_worker_waits_for_is_in_its_beats(tmp_path: Path) -> None:
    with Page.create(tmp_path / "page", generation=3, slots=1) as page:
        seen = [page.snapshot()]
        # one wait within another, one that never began
        for step in (page.begin_wait, page.end_wait, page.begin_wait, page.begin_wait, page.end_wait, page.end_wait):
            step()
            seen.append(page.snapshot())
    assert [snapshot.host_waits for snapshot in seen] == [False, True, False, True, True, False, False]
    beats = [snapshot.host_beats for snapshot in seen]
    assert sorted(set(beats)) == beats, "each is a beat"


def test_a_launch_begins_with_all_of_its_words(tmp_path: Path) -> None:
    with Page.create(tmp_path / "page", generation=3, slots=1) as page:
        page.begin_launch(7, tokens=16, layer=2, begun_at_ns=123)
        snapshot = page.snapshot()
    assert (snapshot.begun, snapshot.tokens, snapshot.layer, snapshot.begun_at_ns) == (7, 16, 2, 123)


def test_words_lie_where_the_layout_says(tmp_path: Path) -> None:
    with Page.create(tmp_path / "page", generation=3, slots=5, pid=77) as page:
        page.write(Line.ABORT, 0, 41)
        page.write(Line.LAUNCH, Launch.TOKENS, 4096)
        page.write(beat_page.FIRST_SLOT + 4, SlotWord.TICKET, 9)
    raw = (tmp_path / "page").read_bytes()

    def word(line: int, index: int) -> int:
        (value,) = struct.unpack_from("<Q", raw, line * 64 + index * 8)
        return int(value)

    assert raw[:8] == b"fdmoe-bp"
    assert [word(0, index) for index in range(1, 5)] == [beat_page.VERSION, 77, 3, 5]
    assert (word(1, 0), word(2, 2), word(8 + 4, 1)) == (41, 4096, 9)
    assert len(raw) == mmap.PAGESIZE
    assert (tmp_path / "page").stat().st_mode & 0o777 == 0o600


def test_a_snapshot_holds_what_was_written(tmp_path: Path) -> None:
    with Page.create(tmp_path / "page", generation=3, slots=2, pid=77) as page:
        for line, word, value in (
            (Line.LAUNCH, Launch.BEGUN, 12), (Line.LAUNCH, Launch.BEGUN_AT_NS, 5), (Line.LAUNCH, Launch.LAYER, 1),
            (Line.EXIT, ExitWord.ENDED, 11), (Line.EXIT, ExitWord.EXIT, 11 << 8 | Exit.ABORTED),
            (Line.EXIT, ExitWord.DOWN, 30), (Line.HOST, Host.STAGE, Stage.SERVING), (Line.HOST, Host.ANSWERED, 8),
            (Line.GATEWAY, 0, 9), (beat_page.FIRST_SLOT + 1, SlotWord.PHASE, Phase.DOWN),
            (beat_page.FIRST_SLOT + 1, SlotWord.TICKET, 7),
            (beat_page.FIRST_SLOT + 1, SlotWord.TILE, 2 << 32 | 6), (beat_page.FIRST_SLOT + 1, SlotWord.SEEN, 3),
            (beat_page.FIRST_SLOT + 1, SlotWord.WAIT, Wait.UP_TILES << 32 | 6),
        ):  # fmt: skip
            page.write(line, word, value)
        seen = page.snapshot()
        assert (seen.pid, seen.generation, seen.begun, seen.ended, seen.exit) == (77, 3, 12, 11, Exit.ABORTED)
        assert (seen.outstanding, seen.stage, seen.answered, seen.submitted) == (True, Stage.SERVING, 8, 9)
        assert seen.items == (0, 0, 30, 0)
        assert page.exit_of(11) is Exit.ABORTED
        assert page.exit_of(12) is Exit.NONE
        assert parse_slots(seen.slots)[1] == page.slot(1) == Slot(0, 6, Phase.DOWN, 0, 2, 6, Wait.UP_TILES, 6, 3, 0)
        assert page.add(Line.HOST, Host.ANSWERED) == 9


def test_no_two_words_lie_in_the_same_place() -> None:
    places = [
        line * beat_page.LINE_WORDS + word for line, words in WORDS.items() for word in words.__members__.values()
    ]
    places += [line * beat_page.LINE_WORDS for line in (Line.ABORT, Line.GATEWAY)]
    assert len(places) == len(set(places))
    assert {*WORDS, Line.ABORT, Line.GATEWAY} == {*Line, *range(beat_page.FIRST_SLOT, LINES)}
    for words in WORDS.values():
        assert [word.value for word in words] == list(range(len(words))), "as the layout names them, without a gap"
        assert len(words) <= beat_page.LINE_WORDS
    assert max(places) < beat_page.page_size_bytes(SLOTS) // beat_page.WORD_BYTES


def test_the_layout_that_is_written_out_is_the_one_that_is_used() -> None:
    """The module's docstring is the contract: a row for each line, with its one writer and its words in order."""
    assert beat_page.__doc__ is not None
    table = beat_page.__doc__.split("word 0")[1].split("- abort launch")[0].splitlines()[1:]
    rows = {name: (writer, words) for name, writer, *words in (row.split() for row in table if row.strip())}
    expected = {
        "0": ("worker", Identity), "2": ("worker", Launch), "3": ("kernel", ExitWord), "4": ("worker", Host),
        "8+c": ("CTA", SlotWord),
    }  # fmt: skip
    for name, (writer, words) in expected.items():
        assert rows[name][0] == writer
        # begun at/ns is BEGUN_AT_NS, ticket+1 is TICKET, host beats is BEATS
        said = " ".join(rows[name][1]).replace("/", "_").replace("+1", "").replace("host beats", "beats")
        assert said.removeprefix("c ").replace(" ", "_") == "_".join(word.name.lower() for word in words)
    assert (rows["1"], rows["5"]) == (("watchdog", ["abort", "launch"]), ("gateway", ["submitted"]))
    assert len(rows) == len(Line) + len(["reserved", "slots"])


@given(
    writes=st.lists(
        st.tuples(st.booleans(), st.integers(1, LINES - 1), st.integers(0, beat_page.LINE_WORDS - 1), WORD),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_what_is_written_is_read_and_no_other_word_changes(
    module_path: Path, writes: list[tuple[bool, int, int, int]]
) -> None:
    module_path.unlink(missing_ok=True)
    with (
        Page.create(module_path, generation=3, slots=SLOTS, pid=77) as mapped,
        PageFile.open(module_path) as file,
    ):
        raw = bytearray(module_path.read_bytes())
        for by_mapping, line, word, value in writes:
            (mapped if by_mapping else file).write(line, word, value)
            struct.pack_into("<Q", raw, line * 64 + word * 8, value)
            assert mapped.read(line, word) == file.read(line, word) == value
            assert module_path.read_bytes() == raw
        assert mapped.snapshot() == file.snapshot()


@given(place=st.sampled_from(PLACES), value=WORD, launch=WORD)
@example((Line.EXIT, ExitWord.EXIT), 7 << 8 | Exit.DONE, 7)
@example((Line.EXIT, ExitWord.EXIT), 8 << 8 | Exit.DONE, 7)
@example((Line.LAUNCH, Launch.BEGUN), 8, 7)
@example((Line.HOST, Host.STAGE), Stage.TRIAL, 0)
def test_a_snapshot_calls_each_word_by_its_name(
    module_path: Path, place: tuple[int, int], value: int, launch: int
) -> None:
    module_path.unlink(missing_ok=True)
    with PageFile.create(module_path, generation=3, slots=SLOTS, pid=77) as page:
        page.write(Line.LAUNCH, Launch.BEGUN, launch)
        page.write(Line.EXIT, ExitWord.ENDED, launch)
        before = page.snapshot()
        page.write(*place, value)
        assert page.snapshot() == _changed(before, *place, value)


def _changed(before: Snapshot, line: int, word: int, value: int) -> Snapshot:
    changes: dict[str, object] = {}
    if line >= beat_page.FIRST_SLOT:
        slots = bytearray(before.slots)
        struct.pack_into("<Q", slots, (line - beat_page.FIRST_SLOT) * 64 + word * 8, value)
        changes["slots"] = bytes(slots)
    elif (line, word) == (Line.HOST, Host.STAGE):
        changes["stage"] = Stage(value) if value in list(Stage) else Stage.STARTING
    elif (line, word) == (Line.EXIT, ExitWord.EXIT):
        known = value >> 8 == before.ended and value & 0xFF in list(Exit)
        changes["exit"] = Exit(value & 0xFF) if known else Exit.NONE
    elif line == Line.EXIT and word in ITEMS:
        items = list(before.items)
        items[ITEMS.index(ExitWord(word))] = value
        changes["items"] = tuple(items)
    elif name := FIELDS.get((line, word)):
        changes[name] = value
    return dataclasses.replace(before, **changes)  # type: ignore[arg-type]


_SLOT = st.builds(
    Slot, launch=WORD, ticket=st.none() | st.integers(0, 2**64 - 2), phase=st.sampled_from(Phase),
    expert=st.just(beat_page.ALL_EXPERTS) | st.integers(0, 2**64 - 2), row_tile=st.integers(0, 2**32 - 1),
    column_tile=st.integers(0, 2**32 - 1), wait=st.sampled_from(Wait), target=st.integers(0, 2**32 - 1), seen=WORD,
    items=WORD,
)  # fmt: skip


@given(slots=st.lists(_SLOT, min_size=SLOTS, max_size=SLOTS))
def test_any_slot_is_read_as_a_cta_stores_it(module_path: Path, slots: list[Slot]) -> None:
    module_path.unlink(missing_ok=True)
    with Page.create(module_path, generation=1, slots=SLOTS) as page:
        for index, slot in enumerate(slots):
            words = (
                slot.launch, 0 if slot.ticket is None else slot.ticket + 1, slot.phase, slot.expert & 2**64 - 1,
                slot.row_tile << 32 | slot.column_tile, slot.wait << 32 | slot.target, slot.seen, slot.items,
            )  # fmt: skip
            for word, value in enumerate(words):
                page.write(beat_page.FIRST_SLOT + index, word, value)
        assert [page.slot(index) for index in range(SLOTS)] == slots
        assert parse_slots(page.snapshot().slots) == slots


def test_two_mappings_see_each_other(tmp_path: Path) -> None:
    with Page.create(tmp_path / "page", generation=1, slots=4) as writer, Page.open(tmp_path / "page") as reader:
        writer.write(Line.LAUNCH, Launch.BEGUN, 5)
        assert reader.snapshot().outstanding
        reader.write(Line.ABORT, 0, 5)
        assert writer.read(Line.ABORT, 0) == 5


@given(words=st.lists(WORD, min_size=8, max_size=64).filter(lambda words: len(words) % 8 == 0))
def test_noise_in_the_slots_is_read_as_something(words: list[int]) -> None:
    slots = parse_slots(struct.pack(f"<{len(words)}Q", *words))
    assert len(slots) == len(words) // 8
    for slot, start in zip(slots, range(0, len(words), 8), strict=True):
        assert slot.launch == words[start]
        assert slot.phase in Phase
        assert slot.wait in Wait


@given(exit_word=WORD, stage=WORD, launch=st.integers(0, 2**56 - 1))
def test_noise_in_the_words_is_read_as_something(
    tmp_path_factory: pytest.TempPathFactory, exit_word: int, stage: int, launch: int
) -> None:
    path = tmp_path_factory.mktemp("noise") / "page"
    with Page.create(path, generation=1, slots=1) as page:
        page.write(Line.EXIT, ExitWord.EXIT, exit_word)
        page.write(Line.HOST, Host.STAGE, stage)
        assert page.snapshot().stage in Stage
        assert page.exit_of(launch) in Exit
    path.unlink()


@pytest.mark.parametrize(
    ("line", "word", "value", "message"),
    [
        (Line.IDENTITY, Identity.MAGIC, 7, "magic is 0x7; a beat page has 0x70622d656f6d6466"),
        (Line.IDENTITY, Identity.VERSION, 9, "layout version is 9; this program reads 2"),
        (Line.IDENTITY, Identity.SLOTS, 10**9, "1000000000 slots do not fit 4096 bytes"),
    ],
)
def test_files_that_are_no_page_are_refused(tmp_path: Path, line: Line, word: int, value: int, message: str) -> None:
    with Page.create(tmp_path / "page", generation=1, slots=1) as page:
        page.write(line, word, value)
    with pytest.raises(PageError, match=message):
        Page.open(tmp_path / "page")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    Page.create(tmp_path / "page", generation=1, slots=1).close()
    os.truncate(tmp_path / "page", 100)
    with pytest.raises(PageError, match="100 bytes; a beat page has whole memory pages, at least 4096"):
        Page.open(tmp_path / "page")


@pytest.mark.parametrize("kind", [Page, PageFile])
def test_a_page_reads_the_same_mapped_and_as_a_file(tmp_path: Path, kind: type[Page | PageFile]) -> None:
    with kind.create(tmp_path / "page", generation=3, slots=2, pid=77) as page, Page.open(tmp_path / "page") as mapped:
        page.write(Line.LAUNCH, Launch.BEGUN, 2**64 - 1)
        assert page.add(Line.GATEWAY, 0, 5) == 5
        mapped.write(Line.EXIT, ExitWord.ENDED, 7)
        assert page.snapshot() == mapped.snapshot()
        assert (page.read(Line.EXIT, ExitWord.ENDED), mapped.read(Line.LAUNCH, Launch.BEGUN)) == (7, 2**64 - 1)
        assert page.slots == mapped.slots == 2


def test_a_page_that_is_cut_short_while_it_is_read_is_an_error_and_no_sigbus(tmp_path: Path) -> None:
    with PageFile.create(tmp_path / "page", generation=1, slots=768) as page:
        page.snapshot()
        os.truncate(tmp_path / "page", 4096)
        with pytest.raises(PageError, match="page: it ends after 4096 bytes"):
            page.snapshot()
        os.truncate(tmp_path / "page", 0)
        with pytest.raises(PageError, match="page: it ends after 320 bytes"):
            page.add(Line.GATEWAY, 0)


@given(seed=st.integers(0, 2**32))
def test_noise_all_over_a_page_is_an_error(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    path = tmp_path_factory.mktemp("noise") / "page"
    with PageFile.create(path, generation=1, slots=1) as page:
        path.write_bytes(random.Random(seed).randbytes(4096))
        with pytest.raises(PageError, match="magic is"):
            page.snapshot()
    path.unlink()


_WRITER = """
import sys
from pathlib import Path
from fdmoe_watchdog.page import FIRST_SLOT, Line, Page
page = Page.open(Path(sys.argv[1]))
print("ready", flush=True)
patterns = (0x1111111111111111, 0xEEEEEEEEEEEEEEEE)
while True:
    for value in patterns:
        for line in (Line.LAUNCH, Line.EXIT, Line.HOST, FIRST_SLOT, FIRST_SLOT + 3):
            for word in range(8):
                page.write(line, word, value)
"""


@pytest.mark.parametrize("kind", [Page, PageFile])
def test_no_reader_sees_half_a_word_while_another_process_writes(tmp_path: Path, kind: type[Page | PageFile]) -> None:
    with kind.create(tmp_path / "page", generation=1, slots=4) as page:
        command = (sys.executable, "-c", _WRITER, str(page.path))
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            whole, seen = {0, 0x1111111111111111, 0xEEEEEEEEEEEEEEEE}, set()
            for _ in range(3000):
                snapshot = page.snapshot()
                words = memoryview(snapshot.slots).cast("Q").tolist()
                seen |= {snapshot.begun, snapshot.tokens, snapshot.ended, snapshot.answered, *snapshot.items, *words}
                assert seen <= whole
            writer.kill()
        assert seen == whole, "it wrote while it was read"


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "page").write_text("mine")
    with pytest.raises(FileExistsError):
        Page.create(tmp_path / "page", generation=1, slots=1)
    with pytest.raises(ValueError, match="slots is 0"):
        Page.create(tmp_path / "other", generation=1, slots=0)
