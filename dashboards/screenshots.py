"""`make screenshots`: the status page of a real tree on the CPU, and Prometheus beside it, as pictures.

A tree with the demo checkpoint is under load when its active worker stalls, and when a tile of it is NaN: the alert of
that comes and goes in a Prometheus with our rules, which run sixty times faster than written. Needs Debian's chromium,
prometheus and prometheus-alertmanager, and Playwright (requirements-dev.txt).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import urllib.parse
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, running_tree
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.demo import write_demo_model

# the tests' own Prometheus
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from monitoring import MISSING, Monitoring, load_rules, monitoring

ALERT = "FdmoeShadowMismatch"

# long enough for pictures of each state
FLAGS = (
    "--model-name=demo", "--enable-chaos", "--recovery-cooldown-initial-s=4", "--recovery-cooldown-max-s=4",
)  # fmt: skip
PATIENCE_MS = 120_000


def open_page(browser: Browser, tree: Tree, width: int, height: int, scheme: str, scale: int) -> Page:
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,  # type: ignore[arg-type]
        device_scale_factor=scale,
        timezone_id="UTC",
        locale="en-GB",
        reduced_motion="reduce",
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{tree.watchdog_port}/")
    page.wait_for_selector('#badge:has-text("Serving")')
    return page


def shrink(picture: Path) -> None:
    """To a palette that keeps rare colours: less than half of the bytes, and text looks the same."""
    Image.open(picture).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        picture, optimize=True
    )


def take(browser: Browser, tree: Tree, load_s: float, directory: Path) -> None:
    """While a stall lasts, and when the baseline has taken over: on a desk in the light, on a phone in the dark."""
    desk = open_page(browser, tree, 1280, 800, "light", 1)
    phone = open_page(browser, tree, 360, 720, "dark", 2)
    desk.wait_for_timeout(load_s * 1000)
    tree.arm("stall")
    desk.wait_for_selector('.device .cell[data-level="2"], .device .cell[data-level="3"]')
    desk.screenshot(path=directory / "status-page-stall.png", full_page=True)
    desk.wait_for_selector('#events tr[data-event="recovery"]')
    desk.wait_for_timeout(1500)
    desk.screenshot(path=directory / "status-page.png", full_page=True)
    phone.screenshot(path=directory / "status-page-phone.png")
    for picture in directory.glob("status-page*.png"):
        shrink(picture)


def take_alert(browser: Browser, tree: Tree, watch: Monitoring, directory: Path) -> None:
    """Prometheus' own page while an alert fires, and its graph when it is over."""
    tree.wait_until("the fused path", lambda: tree.status()["path"] == "fused")
    page = browser.new_context(viewport={"width": 1200, "height": 860}).new_page()
    tree.arm("nan")
    watch.wait_until(ALERT, lambda: watch.query(f'ALERTS{{alertname="{ALERT}", alertstate="firing"}}'))
    # Debian's Prometheus has the classic pages
    page.goto(f"http://127.0.0.1:{watch.port}/classic/alerts")
    page.get_by_text(ALERT).first.click()
    page.get_by_text(ALERT).first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    page.screenshot(path=directory / "alert-firing.png")
    watch.wait_until("the end of it", lambda: watch.received(ALERT) and watch.received(ALERT)[-1].status == "resolved")
    page.wait_for_timeout(3000)
    query = urllib.parse.quote(f'ALERTS{{alertname="{ALERT}"}}')
    page.goto(f"http://127.0.0.1:{watch.port}/classic/graph?g0.expr={query}&g0.tab=0&g0.range_input=1m&g0.step_input=1")
    page.wait_for_timeout(2000)
    page.screenshot(path=directory / "alert-resolved.png")
    for picture in directory.glob("alert-*.png"):
        shrink(picture)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -P dashboards/screenshots.py", description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path(__file__).parent / "screenshots")
    parser.add_argument("--load-s", type=float, default=45.0, help="seconds of load before the stall")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    missing = [*MISSING, *([] if chromium else ["chromium"])]
    if missing:
        print(f"error: not installed: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 1
    options.directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fdmoe-screenshots-") as scratch, sync_playwright() as playwright:
        demo = Path(scratch) / "demo"
        write_demo_model(demo)
        checkpoint = Checkpoint.open(demo)
        layer = checkpoint.load(0, device="cpu", dtype=checkpoint.dtype)
        pool = Pool.of("demo/layers.0", layer, 16)
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"]
        )
        with running_tree(f"--model-path={demo}", *FLAGS) as tree, Load(tree.gateway_address, pool, clients=4):
            take(browser, tree, options.load_s, options.directory)
            targets = [tree.gateway_address, f"127.0.0.1:{tree.watchdog_port}"]
            with monitoring(Path(scratch), targets, load_rules(60.0)) as watch:
                watch.wait_until("a scrape", lambda: watch.query("fdmoe_shadow_checks_total"))
                take_alert(browser, tree, watch, options.directory)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
