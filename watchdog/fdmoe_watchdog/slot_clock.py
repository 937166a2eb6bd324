"""When each CTA's line of the beat page last changed, by the reader's own clock."""

from __future__ import annotations

import functools
import itertools
import operator
import struct

from fdmoe_watchdog.page import LINE_BYTES, LINE_WORDS, Phase, SlotWord


class SlotClock:
    """Is given every reading of a page's slots.

    A reading that says nothing new costs one comparison of bytes, 0.5 us for 768 slots; one that does costs 25 us,
    however many lines have changed (Python 3.11, one core of a 2-core machine). An age is right to one poll interval.
    """

    def __init__(self) -> None:
        self._slots = b""
        self._lines: tuple[bytes, ...] = ()
        self._changed_at: list[float] = []

    def read(self, slots: bytes, now: float) -> bool:
        """Whether a line has changed. `slots` is Snapshot.slots, `now` the reader's clock in seconds."""
        if slots == self._slots:
            return False
        lines = _split(slots)
        if len(lines) == len(self._lines):
            for cta in itertools.compress(itertools.count(), map(operator.ne, lines, self._lines)):
                self._changed_at[cta] = now
        else:
            self._changed_at = [now] * len(lines)
        self._slots, self._lines = slots, lines
        return True

    def still_since(self, launch: int) -> float | None:
        """Since when the slowest CTA at work in this launch shows the same beat; the last beat of all where every CTA
        has left it; None where none has shown it yet."""
        words = memoryview(self._slots).cast("Q")
        launches = words[SlotWord.LAUNCH :: LINE_WORDS].tolist()
        phases = words[SlotWord.PHASE :: LINE_WORDS].tolist()
        shown = [cta for cta, number in enumerate(launches) if number == launch]
        at_work = [self._changed_at[cta] for cta in shown if phases[cta] != Phase.LEFT]
        if at_work:
            return min(at_work)
        return max((self._changed_at[cta] for cta in shown), default=None)

    @property
    def changed_at(self) -> tuple[float, ...]:
        """When each line last changed, by the reader's clock."""
        return tuple(self._changed_at)

    def ages_s(self, now: float) -> tuple[float, ...]:
        """How long each CTA's line has stayed as it is, in seconds. Of a line that has never been seen to change: since
        the first reading."""
        return tuple(now - at for at in self._changed_at)


def _split(slots: bytes) -> tuple[bytes, ...]:
    lines = _lines_of(len(slots) // LINE_BYTES)
    return lines.unpack_from(slots)


@functools.cache
def _lines_of(count: int) -> struct.Struct:
    return struct.Struct(f"{LINE_BYTES}s" * count)
