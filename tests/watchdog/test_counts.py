"""The count page: what is written is what is read, and what is no count page is said to be none."""

from __future__ import annotations

import os
import struct
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_watchdog.counts import (
    BOUNDS,
    PATHS,
    TOKEN_BUCKETS,
    CountFile,
    CountPage,
    Counts,
    CountsError,
    Head,
    counts_path,
    nothing,
)

_DURATIONS = st.integers(min_value=0, max_value=20 * 10**9)


def test_the_bounds_are_five_to_a_decade_from_ten_microseconds_to_ten_seconds() -> None:
    assert BOUNDS[:6] == (1e-05, 1.6e-05, 2.5e-05, 4e-05, 6.3e-05, 0.0001)
    assert BOUNDS[-6:] == (1.0, 1.6, 2.5, 4.0, 6.3, 10.0)
    assert len(BOUNDS) == 31


def test_a_launch_is_counted_in_its_path_bucket_and_bound(in_memory: Path) -> None:
    page = CountPage(in_memory / "c", generation=3, layers=2, experts=4)
    reader = CountFile(in_memory / "c", layers=2, experts=4)
    page.ran("fused", 1, 10_000)  # at the first bound
    page.ran("fused", 1, 10_001)
    page.ran("baseline", 5, 11 * 10**9)  # beyond the last
    counts = reader.read()
    launches, seconds = counts.launches("fused", 1)
    assert (list(launches), seconds) == ([1, 1] + [0] * 30, 2.0001e-05)
    launches, seconds = counts.launches("baseline", 8)
    assert (list(launches), seconds) == ([0] * 31 + [1], 11.0)
    others = [(path, bucket) for path in PATHS for bucket in TOKEN_BUCKETS]
    others.remove(("fused", 1))
    others.remove(("baseline", 8))
    assert all(counts.launches(path, bucket) == (nothing(2, 4).launches(path, bucket)) for path, bucket in others)


def test_more_tokens_than_the_last_bucket_are_in_the_last_bucket(in_memory: Path) -> None:
    page = CountPage(in_memory / "c", generation=1, layers=1, experts=1)
    page.ran("fused", 1 << 40, 1)
    assert CountFile(in_memory / "c", layers=1, experts=1).last.launches("fused", TOKEN_BUCKETS[-1])[0][0] == 1


def test_experts_tokens_and_bytes_add_up(in_memory: Path) -> None:
    page = CountPage(in_memory / "c", generation=1, layers=2, experts=3)
    page.computed(1, [5, 0, 2], 700)
    page.computed(1, [1, 1, 0], 300)
    page.computed(0, [0, 0, 9], 1)
    counts = CountFile(in_memory / "c", layers=2, experts=3).read()
    assert (list(counts.tokens), counts.bytes_moved) == ([0, 0, 9, 6, 1, 2], 1001)


def test_a_page_that_has_not_changed_is_not_read_again(in_memory: Path) -> None:
    page = CountPage(in_memory / "c", generation=1, layers=1, experts=1)
    reader = CountFile(in_memory / "c", layers=1, experts=1)
    page.computed(0, [4], 8)
    first = reader.read()
    assert reader.read() is first
    page.computed(0, [1], 1)
    assert reader.read().tokens[0] == 5


@given(launches=st.lists(st.tuples(st.sampled_from(PATHS), st.integers(1, 1 << 23), _DURATIONS), max_size=30))
def test_nothing_is_lost_between_buckets(tmp_path_factory: pytest.TempPathFactory, launches: list) -> None:  # type: ignore[type-arg]
    path = tmp_path_factory.mktemp("counts") / "c"
    page = CountPage(path, generation=1, layers=1, experts=1)
    for serving, tokens, duration in launches:
        page.ran(serving, tokens, duration)
    counts = CountFile(path, layers=1, experts=1).read()
    for serving in PATHS:
        ours = [(tokens, duration) for name, tokens, duration in launches if name == serving]
        found = [counts.launches(serving, bucket) for bucket in TOKEN_BUCKETS]
        assert sum(sum(each) for each, _ in found) == len(ours)
        assert sum(seconds for _, seconds in found) == pytest.approx(sum(duration for _, duration in ours) / 1e9)


def test_counts_add_up_word_by_word() -> None:
    durations = nothing(0, 0).words
    one, two = nothing(1, 2), Counts.of(5, _body(durations, [1, 2]))
    total = one + two + two
    assert (total.bytes_moved, list(total.tokens), total.launches("fused", 1)[1]) == (10, [2, 4], 0.0)
    most = Counts.of(0, _body(durations, [0, 2**57 - 1]))
    hundred = sum([most] * 99, most) + two
    assert list(hundred.tokens) == [1, 100 * (2**57 - 1) + 2], "nothing reaches the next word"
    assert list(hundred.tokens_since(most)) == [1, 99 * (2**57 - 1) + 2]


def test_a_file_that_exists_is_not_overwritten(in_memory: Path) -> None:
    (in_memory / "c").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        CountPage(in_memory / "c", generation=1, layers=1, experts=1)
    assert (in_memory / "c").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: os.truncate(file, 10), r"magic, version, layers and experts are \(0, 0, 0, 0\)"),
        (lambda file: os.truncate(file, 80), "it ends after 80 bytes"),
        (lambda file: _put(file, Head.MAGIC, 7), r"are \(7, 1, 2, 3\); \(\d+, 1, 2, 3\) is needed"),
        (lambda file: _put(file, Head.LAYERS, 9), r"are \(\d+, 1, 9, 3\)"),
        (lambda file: _put(file, 9, 1 << 57), "a word of it is more than anything has ever counted"),
    ],
)
def test_a_damaged_page_is_named_and_what_was_read_stays(in_memory: Path, damage: object, message: str) -> None:
    page = CountPage(in_memory / "c", generation=1, layers=2, experts=3)
    page.computed(1, [5, 0, 2], 700)
    reader = CountFile(in_memory / "c", layers=2, experts=3)
    before = reader.read()
    page.computed(1, [1, 1, 1], 1)
    damage(in_memory / "c")  # type: ignore[operator]
    with pytest.raises(CountsError, match=message):
        reader.read()
    assert reader.last is before


def test_a_page_of_other_layers_is_refused(in_memory: Path) -> None:
    CountPage(in_memory / "c", generation=1, layers=2, experts=3)
    with pytest.raises(CountsError, match=r"\(\d+, 1, 2, 3\); \(\d+, 1, 2, 4\) is needed"):
        CountFile(in_memory / "c", layers=2, experts=4)


def test_it_stands_beside_the_beat_page() -> None:
    assert counts_path(Path("/run/worker-a-g7.page")) == Path("/run/worker-a-g7.counts")


def _put(path: Path, word: int, value: int) -> None:
    with path.open("r+b") as file:
        file.seek(word * 8)
        file.write(struct.pack("<Q", value))


def _body(durations: int, tokens: list[int]) -> bytes:
    return bytes(array("Q", [0] * durations + tokens))
