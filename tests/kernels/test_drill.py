"""When the abort drill tells a launch to end: a page that a thread writes as a GPU would."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from moe_layers import random_layer

from fdmoe_kernels import ProofError, Workspace, abort_drill, warmup
from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.bench.measuring import new_page
from fdmoe_watchdog.page import FIRST_SLOT, LINE_WORDS, ExitWord, SlotWord, Wait

LAUNCH = 5


def slot(page: torch.Tensor, number: int) -> torch.Tensor:
    """The words of one CTA."""
    first = (FIRST_SLOT + number) * LINE_WORDS
    return page[first : first + LINE_WORDS]


@pytest.fixture
def page() -> torch.Tensor:
    """That of a launch which has begun, and of which CTA 3 shows a wait of the launch before."""
    page = new_page(torch.device("cpu"))
    slot(page, 2)[SlotWord.LAUNCH] = LAUNCH
    slot(page, 3)[SlotWord.LAUNCH], slot(page, 3)[SlotWord.WAIT] = LAUNCH - 1, Wait.UP_TILES
    page[kernel.PAGE_EXIT.value + ExitWord.ENDED] = LAUNCH - 1
    return page


def test_it_waits_until_a_cta_of_this_launch_waits_and_nothing_moves_any_more(page: torch.Tensor) -> None:
    moved: list[float] = []

    def work() -> None:
        time.sleep(0.02)
        slot(page, 2)[SlotWord.WAIT] = Wait.ROUTE_TILES
        for item in range(40):
            slot(page, 1)[SlotWord.ITEMS] = item + 1
            moved.append(time.monotonic())
            time.sleep(0.0005)

    thread = threading.Thread(target=work)
    thread.start()
    warmup._wait_until_it_stands_still(LAUNCH, page)
    thread.join()
    assert len(moved) > 0, "it was waited for until then"
    assert int(page[kernel.PAGE_ABORT.value]) == 0, "the drill's own to set"


def test_a_launch_whose_beats_never_rest_is_told_all_the_same(page: torch.Tensor) -> None:
    slot(page, 2)[SlotWord.WAIT] = Wait.ROUTE_TILES
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            slot(page, 1)[SlotWord.ITEMS] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        warmup._wait_until_it_stands_still(LAUNCH, page)
    finally:
        done.set()
        thread.join()


def test_a_launch_that_ends_instead_is_no_proof(page: torch.Tensor) -> None:
    page[kernel.PAGE_EXIT.value + ExitWord.ENDED] = LAUNCH
    with pytest.raises(ProofError, match="launch 5 was to stall, and ended"):
        warmup._wait_until_it_stands_still(LAUNCH, page)


def test_a_launch_of_which_no_cta_waits_is_told_to_end_and_is_no_proof(
    page: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "_STALLS_WITHIN_S", 0.05)
    with pytest.raises(ProofError, match=r"launch 5 was to stall, and does not wait after 0\.05 s"):
        warmup._wait_until_it_stands_still(LAUNCH, page)
    assert int(page[kernel.PAGE_ABORT.value]) == LAUNCH


def test_the_drill_says_how_long_the_end_took_and_needs_a_page() -> None:
    layer = random_layer(8, 64, 32, 2)
    workspace = Workspace(layer, 4, page=new_page(layer.device))
    assert 0 < abort_drill(layer, workspace) < 60
    assert workspace.page is not None
    assert int(workspace.page[kernel.PAGE_ABORT.value]) == 0
    with pytest.raises(ValueError, match="an abort word is needed"):
        abort_drill(layer, Workspace(layer, 4))
