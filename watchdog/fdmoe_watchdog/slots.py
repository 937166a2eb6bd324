"""When each CTA's slot last changed. It is fed with readings and the time; it reads no clock itself."""

from __future__ import annotations

from fdmoe_watchdog.page import LINE_BYTES, LINE_WORDS, Phase, SlotWord


class SlotClock:
    """Times are the caller's, in seconds; a slot that never changed has the time of the first reading."""

    def __init__(self) -> None:
        self._slots = b""
        self._changed_at: list[float] = []

    def read(self, slots: bytes, now: float) -> bool:
        """Whether any slot has changed since the last reading."""
        last = self._slots
        if slots == last:
            return False
        if len(slots) != len(last):
            self._changed_at = [now] * (len(slots) // LINE_BYTES)
        else:
            for cta, start in enumerate(range(0, len(slots), LINE_BYTES)):
                if slots[start : start + LINE_BYTES] != last[start : start + LINE_BYTES]:
                    self._changed_at[cta] = now
        self._slots = slots
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

    def changed_at(self, cta: int) -> float:
        return self._changed_at[cta]
