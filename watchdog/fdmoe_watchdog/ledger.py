"""What all workers of a tree have computed since it began: of those that live by their pages, of the dead by heart.

The watchdog's loop only says who came and went; pages are read by whoever asks, such as a scrape, in its own thread.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fdmoe_watchdog.background import Background
from fdmoe_watchdog.counts import CountFile, Counts, CountsError, nothing

# over which the busiest expert is compared with the mean, and the least that says anything
IMBALANCE_S = 60.0
IMBALANCE_TOKENS = 1000
_SAMPLE_S = 5.0


class Ledger:
    """Safe to use from several threads. `report` is told, in words, of a page that is lost; its last counts stay.
    `latest` is the last sum that was asked for; `background` is for whoever must not wait for a file."""

    def __init__(self, report: Callable[[str, str], None]) -> None:
        # of its own: the log's may wait for a reader of the log
        self.background = Background("watchdog-counts")
        self._report = report
        self._lock = threading.Lock()
        self._layers: tuple[str, ...] = ()
        self._dead: Counts | None = None
        self._pages: dict[str, CountFile] = {}
        self._lost: set[str] = set()
        self.latest: Counts | None = None
        # what the experts had computed at earlier readings, with their times
        self._samples: deque[tuple[float, Counts]] = deque()

    @property
    def layers(self) -> tuple[str, ...]:
        """The served layers, in the order of the pages; empty until a worker was ready."""
        return self._layers

    def came(self, worker: str, path: Path, layers: tuple[str, ...], experts: int) -> None:
        """A worker is ready, and this is its count page. Opens a file: not for the watchdog's loop."""
        with self._lock:
            if self._layers and layers != self._layers:
                self._report(worker, f"{path}: its layers are {layers}; {self._layers} are served")
                return
            try:
                page = CountFile(path, layers=len(layers), experts=experts)
            except (OSError, CountsError) as error:
                self._report(worker, str(error))
                return
            self._layers = layers
            self._dead = self._dead or nothing(len(layers), experts)
            self._bury(worker)
            self._pages[worker] = page

    def went(self, worker: str) -> None:
        """The worker's process has been reaped; its file may be gone already."""
        with self._lock:
            self._bury(worker)

    def counts(self, now: float) -> Counts | None:
        """The sum over all workers; None until one was ready. `now`: seconds of any one clock."""
        with self._lock:
            if self._dead is None:
                return None
            total = self._dead
            for worker, page in self._pages.items():
                total += self._read(worker, page)
            self._sample(now, total)
            self.latest = total
            return total

    def imbalances(self) -> dict[str, float]:
        """Tokens of a layer's busiest expert over the mean of all its experts, in the last minute as far as it was
        asked for by `counts`; without the layers that had too few tokens."""
        with self._lock:
            if len(self._samples) < 2:
                return {}
            (_, then), (_, now) = self._samples[0], self._samples[-1]
        tokens = now.tokens_since(then)
        experts = len(tokens) // len(self._layers)
        ratios = {}
        for index, layer in enumerate(self._layers):
            part = tokens[index * experts : (index + 1) * experts]
            total = sum(part)
            if total >= IMBALANCE_TOKENS:
                ratios[layer] = max(part) * experts / total
        return ratios

    def _sample(self, now: float, counts: Counts) -> None:
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_S:
            samples.pop()
        samples.append((now, replace(counts)))  # without the words that its readers have made of it
        while len(samples) > 2 and now - samples[1][0] >= IMBALANCE_S:
            samples.popleft()

    def _bury(self, worker: str) -> None:
        page = self._pages.pop(worker, None)
        if page is not None and self._dead is not None:
            self._dead += self._read(worker, page)
            page.close()
        self._lost.discard(worker)

    def _read(self, worker: str, page: CountFile) -> Counts:
        if worker not in self._lost:
            try:
                return page.read()
            except (OSError, CountsError) as error:
                self._lost.add(worker)
                self._report(worker, str(error))
        return page.last
