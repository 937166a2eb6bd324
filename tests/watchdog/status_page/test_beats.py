"""Heat maps from pages: a letter and an age for each CTA."""

from __future__ import annotations

import struct
from dataclasses import replace

import status_views
from status_views import page, slot

from fdmoe_watchdog.page import Phase, Wait
from fdmoe_watchdog.status_page.beats import Beats, heat


def test_a_stalled_launch_shows_every_cta_and_the_oldest_that_is_still_in_it() -> None:
    told = heat(status_views.stalled_beats("a"))
    assert told.states == "wwk" + "l" * 13
    assert told.ages_ms == (61, 30, 1) + (60,) * 13
    assert (told.worker, told.oldest, told.stall_after_ms) == ("a", 0, 50)
    assert (told.launch, told.layer, told.tokens) == (7, "demo/layers.1", 5)


def test_between_launches_nothing_grows_old() -> None:
    told = heat(status_views.idle_beats("b", ctas=3, slots=768))
    assert (told.states, told.ages_ms, told.oldest, told.stall_after_ms) == ("iii", (), -1, 0)
    # so a document of an idle tree is the same from one reading to the next
    assert told == heat(replace(status_views.idle_beats("b", ctas=3, slots=768), clock_s=500.0))


def test_a_cta_that_is_not_in_the_launch_yet_is_told_from_one_that_was_there() -> None:
    slots = slot(7, Phase.ROUTE) + slot(6) + slot(7, Phase.NONE, Wait.ROUTE_TILES) + bytes(64)
    told = heat(Beats("a", (), page(slots, ended=6), (99.0, 90.0, 99.5, 0.0), 100.0, 0.0))
    assert told.states == "knw"
    assert (told.ages_ms, told.oldest) == ((1000, 10000, 500), 0)
    assert (told.layer, told.stall_after_ms) == ("layer 0", 0)


def test_a_page_that_was_never_read_or_is_noise_breaks_nothing() -> None:
    assert heat(Beats("a", (), None, (), 0.0, 0.0)).states == ""
    noise = struct.pack("<8Q", *[2**64 - 1] * 8) * 16
    told = heat(Beats("a", (), page(noise, begun=2**64 - 1, ended=0), (0.0,) * 16, 1e9, 5.0))
    assert told.states == "w" * 16
    assert set(told.ages_ms) == {99_999_999}
