"""The tree's sums: they survive the workers that counted, and pages that are lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fdmoe_watchdog.counts import MAGIC, CountPage, Counts
from fdmoe_watchdog.ledger import Ledger

LAYERS = ("m/layers.0", "m/layers.1")


class Desk:
    """A ledger, what it reported, and a clock that is moved by hand."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports: list[tuple[str, str]] = []
        self.ledger = Ledger(lambda worker, reason: self.reports.append((worker, reason)))

    def worker(self, name: str, generation: int, *, layers: int = 2, experts: int = 3) -> CountPage:
        path = self.directory / f"worker-{name}-g{generation}.counts"
        page = CountPage(path, generation=generation, layers=layers, experts=experts)
        self.ledger.came(name, path, LAYERS[:layers], experts)
        return page

    def counts(self, now: float = 0.0) -> Counts:
        counts = self.ledger.counts(now)
        assert counts is not None
        return counts

    def tokens(self, now: float = 0.0) -> list[int]:
        return list(self.counts(now).tokens)


@pytest.fixture
def desk(in_memory: Path) -> Desk:
    return Desk(in_memory)


def test_before_a_worker_is_ready_there_is_nothing(desk: Desk) -> None:
    assert desk.ledger.counts(0.0) is None
    assert desk.ledger.layers == ()
    assert desk.ledger.imbalances() == {}
    desk.ledger.went("a")


def test_what_a_worker_counted_outlives_it(desk: Desk) -> None:
    first, other = desk.worker("a", 1), desk.worker("b", 1)
    first.computed(0, [1, 2, 3], 10)
    other.computed(1, [0, 0, 7], 5)
    other.ran("baseline", 4, 20_000)
    assert desk.tokens() == [1, 2, 3, 0, 0, 7]
    # what it counted after the last reading is in its page still, though the file's name is gone
    first.computed(0, [1, 0, 0], 1)
    (desk.directory / "worker-a-g1.counts").unlink()
    desk.ledger.went("a")
    assert desk.tokens() == [2, 2, 3, 0, 0, 7]
    desk.worker("a", 2).computed(0, [0, 0, 1], 100)
    counts = desk.counts()
    assert (list(counts.tokens), counts.bytes_moved) == ([2, 2, 4, 0, 0, 7], 116)
    assert sum(counts.launches("baseline", 4)[0]) == 1
    assert desk.ledger.layers == LAYERS
    assert desk.reports == []


def test_a_worker_that_comes_again_unannounced_is_counted_once(desk: Desk) -> None:
    desk.worker("a", 1).computed(0, [1, 0, 0], 0)
    desk.worker("a", 2).computed(0, [1, 0, 0], 0)
    assert desk.tokens()[0] == 2


def test_a_page_that_is_lost_is_reported_once_and_its_last_counts_stay(desk: Desk) -> None:
    page = desk.worker("a", 1)
    page.computed(0, [4, 0, 0], 0)
    assert desk.tokens()[0] == 4
    path = desk.directory / "worker-a-g1.counts"
    os.truncate(path, 0)
    assert [desk.tokens()[0] for _ in range(3)] == [4, 4, 4]
    desk.ledger.went("a")
    assert desk.tokens()[0] == 4
    needed = f"({MAGIC}, 1, 2, 3) is needed"
    assert desk.reports == [("a", f"{path}: magic, version, layers and experts are (0, 0, 0, 0); {needed}")]
    # the next generation's page is a page again
    desk.worker("a", 2).computed(0, [1, 0, 0], 0)
    assert desk.tokens()[0] == 5


def test_a_worker_without_a_page_or_with_other_layers_is_reported_and_left_out(desk: Desk) -> None:
    desk.worker("a", 1).computed(0, [1, 1, 1], 0)
    missing = desk.directory / "none.counts"
    desk.ledger.came("b", missing, LAYERS, 3)
    desk.ledger.came("b", missing, ("m/layers.7",), 3)
    assert desk.tokens() == [1, 1, 1, 0, 0, 0]
    assert desk.reports == [
        ("b", f"[Errno 2] No such file or directory: '{missing}'"),
        ("b", f"{missing}: its layers are ('m/layers.7',); {LAYERS} are served"),
    ]


def test_imbalance_is_of_the_last_minute(desk: Desk) -> None:
    page = desk.worker("a", 1)
    page.computed(0, [9000, 0, 0], 0)
    desk.counts(0.0)
    assert desk.ledger.imbalances() == {}, "one reading says nothing"
    page.computed(0, [500, 500, 500], 0)
    desk.counts(30.0)
    assert desk.ledger.imbalances() == {LAYERS[0]: 1.0}
    page.computed(0, [0, 0, 750], 0)
    desk.counts(60.0)
    assert desk.ledger.imbalances() == {LAYERS[0]: 1250 * 3 / 2250}
    # the first 30 s have left the minute
    page.computed(0, [0, 0, 250], 0)
    desk.counts(90.0)
    assert desk.ledger.imbalances() == {LAYERS[0]: 1000 * 3 / 1000}, "the other has no tokens"
    desk.counts(120.0)
    desk.counts(150.0)
    assert desk.ledger.imbalances() == {}, "250 tokens are too few"


def test_many_readings_take_no_more_memory_than_a_few(desk: Desk) -> None:
    page = desk.worker("a", 1)
    for turn in range(1000):
        page.computed(0, [1, 0, 0], 0)
        desk.counts(turn * 0.2)
    assert len(desk.ledger._samples) < 20
    page.computed(0, [0, 1000, 0], 0)
    desk.counts(200.0)
    # 300 readings in the last minute, and up to 5 s more
    assert desk.ledger.imbalances()[LAYERS[0]] == pytest.approx(1000 * 3 / 1300, rel=0.03)
