"""The present edition of the page's document, made once for all readers, and what is news to each of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from fdmoe_watchdog.status_page.history import Sample
from fdmoe_watchdog.status_page.live import LiveView
from fdmoe_watchdog.status_page.sections import sections

INTERVAL_S = 0.25
# a reader hears this often at least that there is nothing new: silence means that the watchdog is not there
TICK_S = 1.0


class Clock(msgspec.Struct, frozen=True):
    """`number`: of the edition. `now`: Unix time here. `age_s`: how long ago the watchdog's loop took the view."""

    number: int
    now: float
    age_s: float
    uptime_s: float


@dataclass(frozen=True, slots=True)
class Edition:
    made_at: float
    clock: Clock
    sections: dict[str, bytes]
    samples: tuple[Sample, ...]
    first: int


class Feed:
    """Asked by several threads; `live` gives the loop's last view. An edition is made when somebody asks for one and
    the last is INTERVAL_S old."""

    def __init__(
        self,
        live: Callable[[], LiveView],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._live, self._clock, self._wall = live, clock, wall
        self._lock = threading.Lock()
        self._edition: Edition | None = None

    def latest(self, *, last: bool = False) -> Edition:
        """`last`: there will be no other, so it must be of now."""
        with self._lock:
            now = self._clock()
            if last or self._edition is None or now - self._edition.made_at >= INTERVAL_S:
                self._edition = self._make(now, self._edition.clock.number + 1 if self._edition else 1)
            return self._edition

    def _make(self, now: float, number: int) -> Edition:
        live = self._live()
        age_s = max(now - live.taken_at, 0.0)
        clock = Clock(number, round(self._wall(), 3), round(age_s, 3), round(live.tree.uptime_s + age_s, 1))
        return Edition(now, clock, sections(live), live.samples, live.first)


class Reader:
    """What one reader has got."""

    def __init__(self) -> None:
        self._edition = 0
        self._sections: dict[str, bytes] = {}
        self._next_sample = 0
        self._told_at = -TICK_S

    def news(self, edition: Edition) -> bytes | None:
        """A JSON document of what it has not got; None if that is nothing and it need not hear of it either."""
        if edition.clock.number == self._edition:
            return None
        new = {name: text for name, text in edition.sections.items() if self._sections.get(name) != text}
        start = max(self._next_sample - edition.first, 0)
        samples = edition.samples[start:]
        if not new and not samples and edition.made_at - self._told_at < TICK_S:
            return None
        self._edition, self._told_at = edition.clock.number, edition.made_at
        self._sections.update(new)
        document = {name: msgspec.Raw(text) for name, text in new.items()}
        document["clock"] = msgspec.Raw(msgspec.json.encode(edition.clock))
        if samples:
            self._next_sample = edition.first + len(edition.samples)
            document["samples"] = msgspec.Raw(
                msgspec.json.encode({"from": edition.first + start, "samples": samples})
            )  # fmt: skip
        return msgspec.json.encode(document)
