"""Areas of the arena never overlap, and all of its memory comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.arena import ALIGNMENT_BYTES, Allocator, Arena, ArenaError, ArenaFull, round_up

KIB = 1024


def test_what_one_mapping_writes_another_reads(in_memory: Path) -> None:
    path = in_memory / "arena"
    path.write_bytes(bytes(4 * KIB))
    arena = Arena.open(path)
    other = Arena.open(path)
    assert (arena.size_bytes, other.size_bytes) == (4 * KIB, 4 * KIB)
    arena.area(512, 5)[:] = b"hello"
    assert bytes(other.area(510, 8)) == b"\0\0hello\0"
    arena.close()
    other.close()


def test_files_that_are_no_arena(in_memory: Path) -> None:
    empty = in_memory / "empty"
    empty.touch()
    with pytest.raises(ArenaError, match="0 bytes; an arena has at least 256"):
        Arena.open(empty)


def test_first_fit_and_joined_neighbours() -> None:
    allocator = Allocator(KIB)
    areas = [allocator.allocate(size) for size in (1, 256, 300)]
    assert areas == [0, 256, 512]
    assert allocator.free_bytes == 0
    with pytest.raises(ArenaFull, match="256 bytes are wanted; the largest free area of the arena has 0"):
        allocator.allocate(1)
    allocator.release(0)
    allocator.release(512)
    with pytest.raises(ArenaFull, match="768 bytes are wanted; the largest free area of the arena has 512"):
        allocator.allocate(600)
    allocator.release(256)
    assert allocator.allocate(KIB) == 0, "three neighbours are one area again"


@pytest.mark.parametrize("offset", [0, 256, 100])
def test_what_is_not_taken_cannot_be_released(offset: int) -> None:
    allocator = Allocator(KIB)
    allocator.release(allocator.allocate(10))
    with pytest.raises(AssertionError, match=f"no area starts at {offset}"):
        allocator.release(offset)


def test_a_size_that_is_no_multiple_leaves_the_rest_unused() -> None:
    assert Allocator(KIB + 255).free_bytes == KIB


@given(
    st.integers(1, 64 * KIB),
    st.lists(st.one_of(st.integers(1, 8 * KIB), st.floats(0, 1, exclude_max=True)), max_size=80),
)
def test_any_history_keeps_areas_apart_and_loses_nothing(size_bytes: int, history: list[int | float]) -> None:
    """A whole number is an allocation of so many bytes, a fraction the release of the area at that place."""
    allocator = Allocator(size_bytes)
    whole = allocator.free_bytes
    taken: dict[int, int] = {}
    for step in history:
        if isinstance(step, int):
            try:
                offset = allocator.allocate(step)
            except ArenaFull:
                continue
            assert offset % ALIGNMENT_BYTES == 0
            assert offset + step <= size_bytes
            assert all(offset + step <= start or start + size <= offset for start, size in taken.items())
            taken[offset] = step
        elif taken:
            offset = list(taken)[int(step * len(taken))]
            allocator.release(offset)
            del taken[offset]
        assert allocator.free_bytes == whole - sum(map(round_up, taken.values()))
    for offset in taken:
        allocator.release(offset)
    assert allocator.free_bytes == whole
    if whole:
        assert allocator.allocate(whole) == 0
