"""The page in a real browser over trees that are made up; tests/tree has it over a real one."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import status_views
from browsers import FAULTS, PALE, chromium, opened
from page_server import PageServer, serving

from fdmoe_watchdog.status_page import stream
from fdmoe_watchdog.status_page.live import LiveView

STALLED = status_views.live(
    status_views.tree(events=status_views.EVENTS, path="baseline", state="aborting", chaos=True),
    (status_views.stalled_beats("a"), status_views.idle_beats("b")),
    samples=240,
)


def _eight_devices() -> LiveView:
    gpus = tuple(status_views.gpu(f"cuda:{index}", 1.0) for index in range(8))
    tree = status_views.tree(devices=8, events=status_views.EVENTS, gpus=gpus)
    beats = tuple(
        status_views.stalled_beats("a3", 132) if worker.name == "a3" else status_views.idle_beats(worker.name, 132, 768)
        for worker in tree.workers
    )
    stuck = {"utilization": 1.0, "batches_per_s": 0.0, "items_per_s": 0.0}
    samples = [
        msgspec.structs.replace(
            (one := status_views.sample(number, 8, utilization=1.0)),
            devices=(*one.devices[:3], msgspec.structs.replace(one.devices[3], **stuck), *one.devices[4:]),
        )
        for number in range(240)
    ]
    return replace(status_views.live(tree, beats), samples=tuple(samples))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[PageServer]:
    with serving(STALLED) as server:
        yield server


def _text(page: Any, selector: str) -> str:
    page.wait_for_selector(".device")
    found: str = page.inner_text(selector)
    return found


def test_a_stall_in_words_cells_and_sentences(browser: Any, server: PageServer) -> None:
    with opened(browser, server.url) as page:
        assert _text(page, "h1") == "Serving on the baseline. 1 of 2 workers ready."
        assert page.inner_text("#badge").endswith("Recovering")
        assert page.title() == "✕ baseline · fdmoe"
        worker = page.locator(".worker").nth(0)
        levels = worker.locator(".cell").evaluate_all("cells => cells.map(cell => cell.dataset.level)")
        assert levels == ["3", "2", "0"] + ["left"] * 13
        assert worker.locator(".heat-words").inner_text() == (
            "Launch 7 of demo/layers.1, 5 tokens: 1 at work, 2 waiting, 13 left. "
            "Oldest beat: CTA 0, 61 ms; the stall time is 50 ms."
        )
        worker.locator(".cell").nth(1).hover()
        assert worker.locator(".cell").nth(1).get_attribute("title") == "CTA 1: waiting, beat 30 ms old"
        assert page.locator(".worker").nth(1).locator(".heat-words").inner_text() == (
            "16 CTAs, idle: no launch is outstanding."
        )
        rows = page.locator("#events tr").all_inner_texts()
        assert [row.split("\t")[0] for row in rows][:3] == ["17:43:40.182", "17:43:40.150", "17:43:40.101"]
        assert rows[0].endswith("Recovered by abort: worker a answered 82 ms after the detection.")
        assert page.inner_text(".verdict") == f"{status_views.STALL['verdict']}."
        assert "Chaos is on" in page.inner_text("#notes")
        assert page.get_attribute("#traffic .chart:first-child svg", "aria-label") == (
            "Requests per second: fused 0, baseline 278; 0 failed in two minutes"
        )


def test_what_comes_is_text_and_never_markup(browser: Any) -> None:
    evil = "<img src=x onerror=alert(1)><b>bold</b>"
    event = {"at": "2030-01-01T00:00:00.000+00:00", "event": "worker_failed", "worker": evil, "reason": evil}
    live = replace(STALLED, tree=msgspec.structs.replace(STALLED.tree, version=evil, events=(event,)))
    with serving(live) as server, opened(browser, server.url) as page:
        assert evil in _text(page, "#events")
        assert page.inner_text("#version") == evil
        assert page.locator("img, b").count() == 0


def test_eight_devices_have_a_cell_for_each_cta_and_the_one_that_makes_no_progress_is_named(browser: Any) -> None:
    with serving(_eight_devices()) as server, opened(browser, server.url) as page:
        page.wait_for_selector(".device")
        counts = page.locator(".cells").evaluate_all("all => all.map(cells => cells.childElementCount)")
        assert counts == [132] * 16
        # of a launch of 132 CTAs 129 have left, and who has left is not late
        assert page.locator('#devices .cell[data-level="3"]').count() == 1
        assert page.locator('#devices .cell[data-level="left"]').count() == 129
        assert page.locator(".divergence:visible").count() == 1
        assert page.locator(".device").nth(3).locator(".divergence").inner_text() == (
            "Busy without progress: the GPU reads as busy, and nothing has been finished for 2 s."
        )
        assert page.locator("#gpus tbody tr").nth(3).inner_text().split("\t") == [
            "cuda:3", "100 %", "100 %", "0 %", "0 %", "3.0", "139", "41",
        ]  # fmt: skip


@pytest.mark.parametrize("live", [STALLED, _eight_devices()], ids=["one device", "eight devices"])
def test_nothing_is_wider_than_the_screen(browser: Any, live: LiveView) -> None:
    with serving(live) as server, opened(browser, server.url) as page:
        page.wait_for_selector(".device")
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 740})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            wide = "all => all.filter(one => one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.id)"
            assert page.locator("main *:visible").evaluate_all(wide) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_themes_have_their_colours_and_enough_contrast(browser: Any, scheme: str) -> None:
    with serving(_eight_devices()) as server, opened(browser, server.url, color_scheme=scheme) as page:
        page.wait_for_selector(".device")
        paper = {"light": "rgb(252, 252, 251)", "dark": "rgb(17, 20, 22)"}
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper[scheme]
        assert page.evaluate(PALE) == []
        server.live = STALLED
        page.wait_for_selector('#badge[data-tone="bad"]')
        assert page.evaluate(PALE) == []


def test_roles_labels_and_headings(browser: Any) -> None:
    with serving(_eight_devices()) as server, opened(browser, server.url) as page:
        page.wait_for_selector(".device")
        assert page.evaluate(FAULTS) == []
        assert page.get_attribute("html", "lang") == "en"
        names = page.get_by_role("region").evaluate_all("all => all.map(one => one.getAttribute('aria-labelledby'))")
        assert names == ["sentence", "devices-title", "traffic-title", "events-title", "flight-title", "gpus-title"]
        assert page.get_by_role("img", name="Beats of 132 CTAs").count() == 16
        # a state is a word and a sign, and not its colour
        assert {text.split(", ")[1] for text in page.locator(".life").all_inner_texts()} == {"ready"}


def test_the_keyboard_reaches_everything_in_order(browser: Any) -> None:
    events = tuple({**status_views.EVENTS[1], "generation": number} for number in range(20))
    live = replace(STALLED, tree=msgspec.structs.replace(STALLED.tree, events=events))
    with serving(live) as server, opened(browser, server.url) as page:
        page.wait_for_selector(".device")
        stops = []
        for _ in range(5):
            page.keyboard.press("Tab")
            stops.append(page.evaluate("document.activeElement.textContent.trim()"))
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", stops[-1]
        assert stops == ["Skip to the state", "8 older events", "/metrics", "/status", "/livez"]
        page.focus("summary")
        page.keyboard.press("Enter")
        assert page.locator("#older-events tr:visible").count() == 8
        page.focus(".skip")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"


def test_a_change_of_path_is_read_out_and_ticks_are_not(browser: Any, server: PageServer) -> None:
    server.live = status_views.live(status_views.tree())
    with opened(browser, server.url) as page:
        page.wait_for_selector(".device")
        assert page.text_content("#announcer") == ""
        server.live = status_views.live(status_views.tree(), samples=12)
        page.wait_for_selector('#traffic .figure:text-is("222")')
        assert page.text_content("#announcer") == ""
        server.live = status_views.live(status_views.tree(path="baseline"))
        page.wait_for_selector("#announcer:not(:empty)", state="attached")
        assert page.text_content("#announcer") == "Device cpu went from fused to baseline."
        # nothing else speaks by itself
        assert page.locator("[aria-live], [role=alert], [role=status]").count() == 2


def test_whoever_asked_for_less_motion_gets_none(browser: Any, server: PageServer) -> None:
    moves = "getComputedStyle(document.querySelector('.cell')).transitionDuration"
    for wish, duration in (("reduce", "0s"), ("no-preference", "0.2s")):
        with opened(browser, server.url, reduced_motion=wish) as page:
            page.wait_for_selector(".device")
            assert page.evaluate(moves) == duration


def test_a_lost_watchdog_is_told_and_found_again(browser: Any) -> None:
    first = PageServer(status_views.live(status_views.tree()))
    first.start()
    with opened(browser, first.url) as page:
        page.wait_for_selector(".device")
        assert page.is_hidden("#alarm")
        page.route("**/events", lambda route: route.abort())
        first.stop()
        page.wait_for_selector("#alarm:visible")
        words = page.inner_text("#alarm")
        assert words.startswith("The connection to the watchdog is lost. What this page shows is of ")
        assert words.endswith(" and may be wrong. Trying again.")
        assert "Not live, " in page.inner_text("#badge")
        assert page.inner_text("h1").startswith("At ")
        assert page.title() == "✕ not live · fdmoe"
        assert page.evaluate(PALE) == []
        with serving(status_views.live(status_views.tree(path="baseline"))) as second:
            page.unroute("**/events")
            page.route("**/events", lambda route: route.continue_(url=f"{second.url}/events"))
            page.wait_for_selector("#alarm", state="hidden")
            assert page.inner_text("h1") == "Serving on the baseline. 2 of 2 workers ready."
            assert page.title() == "▲ baseline · fdmoe"


def test_a_loop_that_does_not_turn_is_told_although_the_server_answers(browser: Any, server: PageServer) -> None:
    with opened(browser, server.url) as page:
        page.wait_for_selector(".device")
        server.turning = False
        page.wait_for_selector("#alarm:visible")
        assert page.inner_text("#alarm").startswith("The watchdog's loop does not turn. What this page shows is of ")
        server.turning = True
        page.wait_for_selector("#alarm", state="hidden")


def test_a_page_too_many_says_so(browser: Any, server: PageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_RETRY_S", 1)
    others = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=20) for _ in range(stream.READERS)]
    for other in others:
        other.request("GET", "/events")
    answers = [other.getresponse() for other in others]
    assert [answer.status for answer in answers] == [200] * 8
    with opened(browser, server.url) as page:
        page.wait_for_selector("#alarm:visible:has-text('as many status pages')")
        assert page.inner_text("#alarm") == "The watchdog serves as many status pages as it can. Trying again."
        assert page.inner_text("h1") == "Waiting for the watchdog."
        for open_one in (*answers, *others):
            open_one.close()
        assert _text(page, "h1") == "Serving on the baseline. 1 of 2 workers ready."
        page.wait_for_selector("#alarm", state="hidden")
