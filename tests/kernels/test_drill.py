"""When the abort drill tells a launch to end: a page that is written as a GPU would."""

from __future__ import annotations

from collections.abc import Callable

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


class Played:
    """The time as warmup has it: each pause is the next step of what the GPU writes meanwhile."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        self.left = list(steps)
        self._now = 0.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds
        if self.left:
            self.left.pop(0)()


def nothing() -> None:
    """Passes, and is not written about."""


def test_it_waits_until_a_cta_of_this_launch_waits_and_nothing_moves_any_more(
    page: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait() -> None:
        slot(page, 2)[SlotWord.WAIT] = Wait.ROUTE_TILES

    def move() -> None:
        slot(page, 1)[SlotWord.ITEMS] += 1

    played = Played(nothing, nothing, wait, move, move, move, nothing, move)
    monkeypatch.setattr(warmup, "time", played)
    warmup._wait_until_it_stands_still(LAUNCH, page)
    assert played.left == [move], "after the first pause in which nothing moved, once it waited"
    assert int(page[kernel.PAGE_ABORT.value]) == 0, "the drill's own to set"


def test_a_launch_whose_beats_never_rest_is_told_all_the_same(
    page: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move() -> None:
        slot(page, 1)[SlotWord.ITEMS] += 1

    slot(page, 2)[SlotWord.WAIT] = Wait.ROUTE_TILES
    played = Played(*[move] * 100)
    monkeypatch.setattr(warmup, "time", played)
    warmup._wait_until_it_stands_still(LAUNCH, page)
    assert played.monotonic() == pytest.approx(0.1, abs=0.01)


def test_a_launch_that_ends_instead_is_no_proof(page: torch.Tensor) -> None:
    page[kernel.PAGE_EXIT.value + ExitWord.ENDED] = LAUNCH
    with pytest.raises(ProofError, match="launch 5 was to stall, and ended"):
        warmup._wait_until_it_stands_still(LAUNCH, page)


def test_a_launch_of_which_no_cta_waits_is_told_to_end_and_is_no_proof(
    page: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "time", Played())
    with pytest.raises(ProofError, match="launch 5 was to stall, and does not wait after 10 s"):
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
