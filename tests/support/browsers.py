"""Debian's Chromium, driven by Playwright; whoever asks for it is skipped where one of them is missing."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

# what an axe would look for, in the page itself: [what is wrong, where]
FAULTS = """() => {
  const faults = [];
  const seen = (node) => node.checkVisibility() && !node.closest(".unseen, [hidden]");
  for (const node of document.querySelectorAll("[aria-labelledby]"))
    for (const id of node.getAttribute("aria-labelledby").split(" "))
      if (!document.getElementById(id)?.textContent.trim()) faults.push(["no such label", id]);
  for (const node of document.querySelectorAll("[role=img], article, nav"))
    if (!node.ariaLabel) faults.push(["no name", node.outerHTML.slice(0, 80)]);
  for (const table of document.querySelectorAll("table")) {
    if (!table.caption?.textContent.trim()) faults.push(["no caption", table.className]);
    for (const head of table.querySelectorAll("th"))
      if (!["col", "row"].includes(head.scope)) faults.push(["no scope", head.textContent]);
  }
  let level = 0;
  for (const heading of [...document.querySelectorAll("h1,h2,h3,h4")].filter(seen)) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) faults.push(["a level is left out", heading.textContent]);
    level = now;
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  if (new Set(ids).size !== ids.length) faults.push(["an id is there twice", ids.join(" ")]);
  for (const name of ["main", "header", "footer", "h1"])
    if (document.querySelectorAll(name).length !== 1) faults.push(["not once", name]);
  return faults;
}"""
# texts whose contrast with what is behind them is under 4.5 (WCAG 2 AA): [ratio, text]
PALE = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const painted = (layers) => {
    canvas.fillStyle = "#fff";
    for (const layer of ["#fff", ...layers]) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (color) => color
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const pale = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !node.checkVisibility()) continue;
    if (node.closest("script, .unseen, .skip")) continue;
    const layers = [];
    for (let behind = node; behind; behind = behind.parentElement)
      layers.unshift(getComputedStyle(behind).backgroundColor);
    const [one, two] = [painted(layers), painted([...layers, getComputedStyle(node).color])].map(luminance);
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) pale.push([ratio, walker.currentNode.textContent]);
  }
  return pale;
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A running browser (playwright.sync_api.Browser)."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: requirements-dev.txt has it")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # as root there is no sandbox, and in a container's small /dev/shm little room
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def opened(browser: Any, url: str, **context: Any) -> Iterator[Any]:
    """A page (playwright.sync_api.Page) at this address, in a browser's context of its own. What the page throws or the
    browser complains of fails the test; that nobody answers does not."""
    options = {"viewport": {"width": 1280, "height": 900}, "timezone_id": "UTC", "locale": "en-GB", **context}
    with contextlib.closing(browser.new_context(**options)) as made:
        made.set_default_timeout(30_000)
        page = made.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.goto(url)
        yield page
        lost = ("net::ERR_", "status of 503")
        assert [text for text in complaints if not any(reason in text for reason in lost)] == []
