"""One sentence on the whole tree."""

from __future__ import annotations

import msgspec
import pytest
import status_views

from fdmoe_watchdog.status import GatewayView, TreeView
from fdmoe_watchdog.status_page.headline import headline


def _changed(view: TreeView, device: int = 0, **values: object) -> TreeView:
    devices = list(view.devices)
    devices[device] = msgspec.structs.replace(devices[device], **values)
    return msgspec.structs.replace(view, devices=tuple(devices))


ONE, EIGHT = status_views.tree(), status_views.tree(devices=8)


@pytest.mark.parametrize(
    ("view", "badge", "words"),
    [
        (ONE, "good Serving", "Serving on fused. 2 of 2 workers ready."),
        (
            status_views.tree(path="baseline", state="aborting"),
            "bad Recovering",
            "Serving on the baseline. 1 of 2 workers ready.",
        ),
        (
            status_views.tree(path="shadow"),
            "warn Degraded",
            "Serving on the baseline, with fused in its shadow. 2 of 2 workers ready.",
        ),
        (status_views.tree(state="starting"), "warn Degraded", "Serving on fused. 1 of 2 workers ready."),
        (status_views.tree(state="dying"), "bad Recovering", "Serving on fused. 1 of 2 workers ready."),
        (_changed(ONE, active=None), "warn Starting", "No worker has been ready yet. 2 of 2 workers ready."),
        (
            msgspec.structs.replace(
                _changed(ONE, active=None),
                workers=tuple(msgspec.structs.replace(worker, generation=2, state="absent") for worker in ONE.workers),
            ),
            "bad Down",
            "Not serving: no worker is active. 0 of 2 workers ready.",
        ),
        (
            msgspec.structs.replace(ONE, gateway=GatewayView("", 0)),
            "bad Down",
            "Not serving: the gateway does not listen. 2 of 2 workers ready.",
        ),
        (status_views.tree(draining=True), "warn Draining", "Serving on fused. 2 of 2 workers ready."),
        (EIGHT, "good Serving", "Serving on fused, on all 8 devices. 16 of 16 workers ready."),
        (
            _changed(_changed(EIGHT, path="baseline"), 5, active=None),
            "warn Degraded",
            "Serving on 7 of 8 devices: 6 fused, 1 baseline, 1 down. 16 of 16 workers ready.",
        ),
    ],
)
def test_words(view: TreeView, badge: str, words: str) -> None:
    told = headline(status_views.live(view))
    assert (f"{told.tone} {told.badge}", told.words) == (badge, words)


def test_the_last_stall_and_how_it_ended() -> None:
    told = headline(status_views.live(status_views.tree(events=status_views.EVENTS)))
    assert (told.stall_at, told.stall) == (1899999820.1, "recovered in 82 ms")
    told = headline(status_views.live(status_views.tree(events=status_views.EVENTS[:4])))
    assert (told.stall_at, told.stall) == (1899999820.1, "")
    assert headline(status_views.live(ONE)).stall_at is None


def test_a_launch_that_is_half_way_to_a_stall_is_no_good_news() -> None:
    worker = msgspec.structs.replace(ONE.workers[0], heartbeat_age_s=0.0249)
    view = msgspec.structs.replace(ONE, workers=(worker, ONE.workers[1]))
    beats = (status_views.stalled_beats("a"), status_views.idle_beats("b"))
    assert headline(status_views.live(view, beats)).badge == "Serving"
    worker = msgspec.structs.replace(worker, heartbeat_age_s=0.025)
    told = headline(status_views.live(msgspec.structs.replace(view, workers=(worker, ONE.workers[1])), beats))
    assert (told.tone, told.badge) == ("warn", "Silent")
    assert told.notes == ("Worker a has shown no beat for 25 ms; 50 ms are a stall.",)


def test_what_else_must_be_known() -> None:
    view = status_views.tree(chaos=True, draining=True, gpus=(status_views.gpu("cpu", 0.5),))
    recorded = msgspec.structs.replace(view.gpus[0], source="recorded")
    view = msgspec.structs.replace(_changed(view, restarts_left=0), gpus=(recorded,))
    assert headline(status_views.live(view)).notes == (
        "Told to stop: what is in flight is finished, and nothing new is taken.",
        "Chaos is on: anybody with access to the run directory may break kernels here on purpose.",
        "Device cpu has no restart left.",
        "GPU figures are replayed from a recording: a demo, and not this machine.",
    )
    assert headline(status_views.live(ONE)).notes == ()
