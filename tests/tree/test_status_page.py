"""The status page of a real tree in a real browser, before, during and after a stall, and when the watchdog is gone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsers import chromium, opened

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, read_events, running_tree
from fdmoe_watchdog.page import PageFile, parse_slots

# every path that the page shows, and every level of a beat, in the order in which they came
WATCH = """() => {
  window.paths = [];
  window.levels = new Set();
  const look = () => {
    const path = document.querySelector(".path")?.textContent;
    if (path && path !== window.paths.at(-1)) window.paths.push(path);
    for (const cell of document.querySelectorAll("#devices .cell")) window.levels.add(cell.dataset.level);
  };
  look();
  new MutationObserver(look).observe(document.body, {
    subtree: true, childList: true, characterData: true, attributes: true,
  });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def tree(demo: Path) -> Iterator[Tree]:
    """Its pause on the baseline is long enough for a page that is brought up to date four times a second."""
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--model-layers=1", "--enable-chaos",
        "--recovery-cooldown-initial-s=2", "--recovery-cooldown-max-s=2",
    )  # fmt: skip
    with running_tree(*flags) as tree:
        yield tree


def ctas_of(tree: Tree, worker: str) -> int:
    """How many CTAs have beaten on the worker's page."""
    (path,) = tree.run_dir.glob(f"worker-{worker}-g*.page")
    with PageFile.open(path) as page:
        return sum(slot.launch > 0 for slot in parse_slots(page.snapshot().slots))


def test_the_page_during_a_stall_and_without_a_watchdog(
    browser: Any, tree: Tree, blocks: list[torch.nn.Module]
) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        pool = Pool("demo/layers.1", "FP32", 64, (x.numpy().tobytes(),), (blocks[1](x[None])[0],))
    with opened(browser, f"http://127.0.0.1:{tree.watchdog_port}/") as page:
        page.set_default_timeout(120_000)
        page.wait_for_selector('#badge:has-text("Serving")')
        assert page.inner_text("h1") == "Serving on fused. 2 of 2 workers ready."
        assert page.inner_text("#stall").startswith("No stall since the start ")
        page.evaluate(WATCH)
        with Load(tree.gateway_address, pool, clients=2):
            page.wait_for_selector('#traffic svg[aria-label*="Latency p50: fused "]')
            tree.arm("stall")
            page.wait_for_selector('#events tr[data-event="recovery"]')
            page.wait_for_selector('.path:text-is("fused")')
        shown = page.evaluate("window.paths")
        assert (shown[0], shown[-1]) == ("fused", "fused")
        assert set(shown[1:-1]) <= {"baseline", "baseline, fused in its shadow"}
        assert len(shown) >= 3
        # a beat grows old by a quarter and a half of the stall time before it is one
        assert set(page.evaluate("[...window.levels]")) & {"1", "2", "3"}

        events = read_events(tree)
        stall = next(event for event in events if event["event"] == "stall")
        recovered = next(event for event in events if event["event"] == "recovery")
        row = page.locator('tr[data-event="stall"]').inner_text()
        assert row.endswith(f"Worker {stall['worker']} stalled: {stall['verdict']}.")
        assert row.startswith(str(stall["at"])[11:23]), "the browser is in UTC"
        assert page.inner_text(".verdict") == f"{stall['verdict']}."
        assert "its completion was lost" in page.inner_text(".verdict")
        assert page.inner_text("#stall").endswith(f" ago: recovered in {recovered['seconds'] * 1000:.0f} ms.")
        worker = page.locator(".worker", has_text=f"Worker {stall['worker']}")
        assert worker.locator(".cell").count() == ctas_of(tree, str(stall["worker"])) > 0

        tree.process.send_signal(signal.SIGSTOP)
        try:
            page.wait_for_selector("#alarm:visible")
            assert page.inner_text("#alarm").startswith("The watchdog says nothing. What this page shows is of ")
        finally:
            tree.process.send_signal(signal.SIGCONT)
        page.wait_for_selector("#alarm", state="hidden")

        assert tree.stop() == 0
        page.wait_for_selector('#alarm:visible:has-text("is lost")')
        assert "Not live, " in page.inner_text("#badge")
        assert page.inner_text("h1").startswith("At ")
        # what it was told last: that the end was wanted
        assert "Told to stop" in page.inner_text("#notes")
