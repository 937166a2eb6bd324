"""What each reader gets: all at first, then what is new to it, and a sign of life each second."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import status_views

from fdmoe_watchdog.status_page.feed import Feed, Reader
from fdmoe_watchdog.status_page.history import KEPT, History, Progress
from fdmoe_watchdog.status_page.live import LiveView, Photographer


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def _feed(view: Callable[[], LiveView]) -> tuple[Feed, Clock]:
    clock = Clock()
    return Feed(view, clock, lambda: 1.9e9 + clock.now), clock


def _read(reader: Reader, feed: Feed) -> dict[str, Any] | None:
    news = reader.news(feed.latest())
    return None if news is None else json.loads(news)


def test_the_first_document_is_whole_and_the_next_have_what_changed() -> None:
    live = status_views.live(status_views.tree())
    feed, clock = _feed(lambda: live)
    reader = Reader()
    first = _read(reader, feed)
    assert first is not None
    assert set(first) == {
        "beats", "clock", "devices", "divergence", "events", "flight", "gpus", "headline", "samples", "tree", "workers",
    }  # fmt: skip
    assert first["clock"] == {"number": 1, "now": 1.9e9 + 1000, "age_s": 0.0, "uptime_s": 400.0}
    assert first["samples"]["from"] == 0
    assert len(first["samples"]["samples"]) == 6
    assert _read(reader, feed) is None, "the same edition"
    clock.now += 0.25
    assert _read(reader, feed) is None, "nothing is new"
    clock.now += 0.75
    tick = _read(reader, feed)
    assert tick == {"clock": {"number": 3, "now": 1.9e9 + 1001, "age_s": 1.0, "uptime_s": 401.0}}
    clock.now += 0.25
    live = replace(
        status_views.live(status_views.tree(path="baseline", events=status_views.EVENTS), samples=8),
        taken_at=1001.2,
    )
    news = _read(reader, feed)
    assert news is not None
    assert set(news) == {"clock", "devices", "events", "flight", "headline", "samples", "tree", "workers"}
    assert news["samples"]["from"] == 6
    assert [one[0] for one in news["samples"]["samples"]] == [status_views.AT - 117, status_views.AT - 116.5]
    assert news["events"][0] == {
        "at": "2030-03-17T17:43:40.182+00:00", "name": "recovery", "tone": "good",
        "words": "Recovered by abort: worker a answered 82 ms after the detection.",
    }  # fmt: skip
    assert news["flight"]["verdict"] == status_views.STALL["verdict"]


def test_one_edition_serves_all_readers_and_is_made_four_times_a_second_at_most() -> None:
    asked = []
    live = status_views.live(status_views.tree())

    def look() -> LiveView:
        asked.append(live)
        return live

    feed, clock = _feed(look)
    for _ in range(8):
        assert _read(Reader(), feed) is not None
    assert len(asked) == 1
    clock.now += 0.2
    feed.latest()
    assert len(asked) == 1
    clock.now += 0.05
    feed.latest()
    assert len(asked) == 2


def test_a_reader_that_fell_far_behind_gets_what_is_left() -> None:
    live = status_views.live(status_views.tree(), samples=KEPT)
    feed, clock = _feed(lambda: live)
    reader = Reader()
    assert _read(reader, feed) is not None
    live = replace(live, first=1000)
    clock.now += 1
    news = _read(reader, feed)
    assert news is not None
    assert (news["samples"]["from"], len(news["samples"]["samples"])) == (1000, KEPT)


def test_documents_of_the_largest_tree_are_bounded() -> None:
    """8 devices of 132 CTAs, all stalled, with as many events and samples as are kept."""
    events = tuple({**status_views.STALL, "launch": number} for number in range(50))
    gpus = tuple(status_views.gpu(f"cuda:{index}", 1.0) for index in range(8))
    tree = status_views.tree(devices=8, events=events, gpus=gpus)
    busy = Progress(12345.6, 1234567.8, 1.0, True)
    samples = tuple(
        msgspec.structs.replace(status_views.sample(number, 8), devices=(busy,) * 8) for number in range(KEPT)
    )
    beats = tuple(status_views.stalled_beats(worker.name, 132) for worker in tree.workers)
    live = replace(status_views.live(tree, beats), samples=samples)
    feed, clock = _feed(lambda: live)
    reader = Reader()
    whole = reader.news(feed.latest())
    assert whole is not None
    assert len(whole) < 160_000
    clock.now += 0.25
    older = tuple(replace(one, clock_s=one.clock_s + 0.25) for one in beats)
    live = replace(live, beats=older)
    beat = reader.news(feed.latest())
    assert beat is not None
    assert set(json.loads(beat)) == {"clock", "beats"}
    assert len(beat) < 16_000


def test_the_last_stall_is_remembered_when_its_event_is_not_kept_any_more() -> None:
    photographer, history = Photographer(), History(0.0)

    def take(*events: Any) -> LiveView:
        return photographer.take(status_views.tree(events=events), (), history, None, 1.0)

    start, stall, recovered = status_views.EVENTS[0], status_views.STALL, status_views.EVENTS[5]
    assert take().stall is None
    live = take(start, stall)
    assert (live.stall, live.recovered) == (stall, None)
    live = take(start, stall, recovered)
    assert (live.stall, live.recovered) == (stall, recovered)
    live = take(start)
    assert (live.stall, live.recovered) == (stall, recovered)
    again = {**stall, "launch": 9}
    live = take(start, again)
    assert (live.stall, live.recovered) == (again, None)
