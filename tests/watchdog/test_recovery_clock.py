"""Only a recovery that somebody waited for has a duration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from fdmoe_watchdog.page import Host, Line, Page
from fdmoe_watchdog.recovery import Recovered, RecoveryClock


class Processes(dict[str, SimpleNamespace]):
    def answer(self, name: str, *, submitted: int, answered: int) -> None:
        page = self[name].page
        page.write(Line.GATEWAY, 0, submitted)
        page.write(Line.HOST, Host.ANSWERED, answered)
        self[name].tracker.last = page.snapshot()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes()
    for name in "ab":
        page = Page.create(tmp_path / name, generation=1, slots=1)
        tracker = SimpleNamespace(last=page.snapshot())
        made[name] = SimpleNamespace(name=name, page=page, read_page=page.snapshot, tracker=tracker)
    yield made
    for process in made.values():
        process.page.close()


def test_an_abort_ends_with_the_same_workers_answer(processes: Processes) -> None:
    clock = RecoveryClock()
    processes.answer("a", submitted=8, answered=7)
    clock.start(processes["a"], 10.0)
    assert clock.look(processes, 10.1) is None
    processes.answer("a", submitted=8, answered=8)
    assert clock.look(processes, 10.25) == Recovered("abort", "a", 0.25)
    assert clock.look(processes, 11.0) is None


def handed_over(processes: Processes) -> RecoveryClock:
    """A stall of a, at 10.0, which left a batch to whoever is next."""
    clock = RecoveryClock()
    processes.answer("a", submitted=8, answered=7)
    clock.start(processes["a"], 10.0)
    clock.hand_over(processes["a"], 10.5)
    return clock


def test_a_replay_keeps_the_start_of_its_stall(processes: Processes) -> None:
    clock = handed_over(processes)
    assert clock.look(processes, 10.6) is None
    clock.routed(processes["b"])
    processes.answer("b", submitted=1, answered=1)
    assert clock.look(processes, 10.75) == Recovered("replay", "b", 0.75)


def test_one_that_nobody_could_reach_is_part_of_the_recovery(processes: Processes) -> None:
    clock = handed_over(processes)
    clock.routed(processes["b"])
    clock.hand_over(processes["b"], 11.5, reached=False)
    assert clock.look(processes, 11.6) is None
    clock.routed(processes["a"])
    processes.answer("a", submitted=9, answered=8)
    assert clock.look(processes, 12.0) == Recovered("replay", "a", 2.0)


def test_who_cannot_be_reached_when_nobody_waits_begins_no_recovery(processes: Processes) -> None:
    clock = RecoveryClock()
    clock.hand_over(processes["a"], 10.5, reached=False)
    clock.routed(processes["b"])
    processes.answer("b", submitted=1, answered=1)
    assert clock.look(processes, 11.0) is None


def test_nobody_waited(processes: Processes) -> None:
    clock = RecoveryClock()
    processes.answer("a", submitted=8, answered=8)
    clock.start(processes["a"], 10.0)
    clock.hand_over(processes["a"], 10.5)
    clock.routed(processes["b"])
    processes.answer("b", submitted=1, answered=1)
    assert clock.look(processes, 30000.0) is None
