"""A launch that waits for what never comes ends by an abort word from another process; the next is right."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from moe_layers import INTERPRETER, Place, random_layer, random_tokens, relative_error

from fdmoe_kernels import Fault, Workspace, fused_moe, reference_moe
from fdmoe_watchdog.page import Exit, Line, Page, Phase, Wait, parse_slots

# a process without torch: watches the page until the launch is stuck in a wait, then writes the abort word
_WATCHER = """
import sys, time
from pathlib import Path
from fdmoe_watchdog.page import Line, Page, Wait, parse_slots
page, launch = Page.open(Path(sys.argv[1])), int(sys.argv[2])
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    slots = [slot for slot in parse_slots(page.snapshot().slots) if slot.launch == launch]
    if any(slot.wait is Wait.UP_TILES and slot.seen < slot.target for slot in slots):
        before = page.snapshot().slots
        quiet = time.monotonic() + 0.2
        while time.monotonic() < quiet:
            pass
        if page.snapshot().slots == before:
            page.write(Line.ABORT, 0, launch)
            print("aborted", launch)
            sys.exit(0)
sys.exit("the launch never got stuck")
"""


@contextlib.contextmanager
def _mapped_page(directory: Path, place: Place, slots: int) -> Iterator[tuple[Page, torch.Tensor]]:
    """A page in shared memory and its words, pinned on a CUDA device."""
    page = Page.create(directory / "page", generation=1, slots=slots)
    words = torch.from_numpy(np.frombuffer(page.mapped, dtype=np.int64))
    if place.device != "cuda":
        yield page, words
        return
    runtime = torch.cuda.cudart()
    assert runtime.cudaHostRegister(words.data_ptr(), words.numel() * 8, 0) == runtime.cudaError.success
    try:
        yield page, words
    finally:
        torch.cuda.synchronize()
        assert runtime.cudaHostUnregister(words.data_ptr()) == runtime.cudaError.success


def test_a_stalled_launch_ends_by_the_abort_word(in_memory: Path, place: Place) -> None:
    with _mapped_page(in_memory, place, slots=4 if place is INTERPRETER else 264) as (page, words):
        _stall_and_abort(page, words, place)


def _stall_and_abort(page: Page, words: torch.Tensor, place: Place) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    tokens = 16 if place is INTERPRETER else 100  # on Hopper, one form of the kernel serves the one, another the other
    workspace = Workspace(layer, tokens, page=words)
    x = random_tokens(layer, tokens, seed=1)
    fused_moe(x, layer, workspace)
    fused_moe(x, layer, workspace, fault=Fault.NONE)
    stalled = workspace.launches + 1
    watcher = subprocess.Popen([sys.executable, "-c", _WATCHER, str(page.path), str(stalled)], stdout=subprocess.PIPE)
    fused_moe(x, layer, workspace, fault=Fault.STALL)
    if place.device == "cuda":
        _wait_until(lambda: page.snapshot().ended == stalled)
        torch.cuda.synchronize()
    assert watcher.communicate(timeout=60)[0] == f"aborted {stalled}\n".encode()
    assert watcher.returncode == 0
    assert page.exit_of(stalled) is Exit.ABORTED
    slots = parse_slots(page.snapshot().slots)
    assert all(slot.phase in (Phase.LEFT, Phase.NONE) for slot in slots)
    # the abort word still names the launch that is over: the next one must not mind it
    assert page.read(Line.ABORT, 0) == stalled
    y = fused_moe(x, layer, workspace)
    assert relative_error(y, reference_moe(x, layer)) < place.tolerance
    assert page.exit_of(stalled + 1) is Exit.DONE


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 16, 100, 900])  # one has a kernel of its own; 900 are in pairs of CTAs
def test_the_abort_word_ends_a_launch_of_every_size_of_grid(tokens: int, in_memory: Path) -> None:
    place = Place("cuda", torch.bfloat16, 6e-3, ())
    with _mapped_page(in_memory, place, slots=264) as (page, words):
        _abort_grids(page, words, place, tokens)


def _abort_grids(page: Page, words: torch.Tensor, place: Place, tokens: int) -> None:
    layer = random_layer(8, 64, 32, 2, place=place)
    workspace = Workspace(layer, tokens, page=words)
    x = random_tokens(layer, tokens, seed=1)
    for programs in (1, 2, 132, 264):
        fused_moe(x, layer, workspace, programs=programs)
        torch.cuda.synchronize()
        fused_moe(x, layer, workspace, programs=programs, fault=Fault.STALL)
        launch = workspace.launches
        _wait_until(
            lambda launch=launch: any(
                slot.launch == launch and slot.wait is not Wait.NONE for slot in parse_slots(page.snapshot().slots)
            )
        )
        page.write(Line.ABORT, 0, launch)
        _wait_until(lambda launch=launch: page.snapshot().ended == launch)
        torch.cuda.synchronize()
        assert page.exit_of(launch) is Exit.ABORTED
        assert relative_error(fused_moe(x, layer, workspace), reference_moe(x, layer)) < place.tolerance


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
