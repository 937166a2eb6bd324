"""`python benchmarks/scrape.py`: what a scrape of the watchdog costs, and what scrapes cost the watchdog's loop.

A real supervisor turns its loop over as many pairs of real processes as there are devices: holders, and workers that
write beats and count pages as a model of 64 layers and 256 experts would have them, and compute nothing. Scrapes come
from a process of its own over loopback. Rounds without and with scrapes take turns; the lag is how much later than
planned a turn of the loop came.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import structlog

from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.child import die_with_parent
from fdmoe_watchdog.counts import CountPage, counts_path
from fdmoe_watchdog.page import FIRST_SLOT, ExitWord, Host, Launch, Line, Page, Phase, SlotWord, Stage
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings
from fdmoe_watchdog.supervisor import Supervisor

_TOKEN_BUCKETS = 15  # up to 16384 tokens
_DEADLINE_S = 60.0
_TURN_S = 0.1
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def holder(run_dir: Path, options: argparse.Namespace) -> None:
    hello = messages.Hello(messages.PROTOCOL, "weights", options.name, options.generation, os.getpid())
    channel = Channel.connect(run_dir / "watchdog.sock", hello)
    channel.send(messages.WeightsReady(options.generation, "manifest", 4096))
    while _wanted(channel):
        time.sleep(_TURN_S)


def worker(run_dir: Path, options: argparse.Namespace) -> None:
    """Ready at once; its counts change ten times a second, its beats too."""
    stem = run_dir / f"worker-{options.name}-g{options.generation}"
    page = Page.open(stem.with_suffix(".page"))
    counts = CountPage(
        counts_path(page.path), generation=options.generation, layers=options.layers, experts=options.experts
    )
    page.write(Line.HOST, Host.STAGE, Stage.SERVING)
    hello = messages.Hello(messages.PROTOCOL, "worker", options.name, options.generation, os.getpid())
    channel = Channel.connect(run_dir / "watchdog.sock", hello)
    infos = tuple(
        messages.LayerInfo(f"m/layers.{index}", 64, "BF16", options.experts, 8) for index in range(options.layers)
    )
    channel.send(messages.WorkerReady(options.generation, infos, 16384))
    for turn in itertools.count():
        page.end_wait()
        _beat(page, turn + 1, options.ctas)
        counts.ran("fused" if turn % 2 else "baseline", 1 << turn % _TOKEN_BUCKETS, 100_000)
        counts.computed(turn % options.layers, [1000] * options.experts, 10**9)
        if not _wanted(channel):
            return
        time.sleep(_TURN_S)


def _beat(page: Page, launch: int, ctas: int) -> None:
    """The launch before has ended, and this one is outstanding on so many CTAs."""
    if not ctas:
        return
    page.write(Line.EXIT, ExitWord.ENDED, launch - 1)
    page.write(Line.LAUNCH, Launch.BEGUN, launch)
    for cta in range(ctas):
        page.write(FIRST_SLOT + cta, SlotWord.PHASE, Phase.UP)
        page.write(FIRST_SLOT + cta, SlotWord.LAUNCH, launch)


def _wanted(channel: Channel) -> bool:
    """Whether the watchdog is still there; what it says is read and means nothing here."""
    try:
        while channel.receive() is not None:
            pass
    except ChannelClosed:
        return False
    return True


def lag_columns(lags: dict[bool, list[float]]) -> dict[str, float]:
    """Median and p99 in ms of the loop's lag, without and with what is measured."""
    return {
        f"loop_lag_p{percent}_ms_{'with' if measured else 'without'}": round(
            statistics.quantiles(lags[measured], n=1000)[percent * 10 - 1], 2
        )
        for percent in (50, 99)
        for measured in (False, True)
    }


class Scraper:
    """A process that scrapes when it is told to, and says what that took."""

    def __init__(self, port: int, accept: str) -> None:
        command = (sys.executable, __file__, "--scrape", str(port), "--accept", accept)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def scrape(self) -> tuple[float, int, int]:
        """Milliseconds, bytes on the wire, series."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        milliseconds, size, series = json.loads(self._process.stdout.readline())
        return milliseconds, size, series

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def scraper(port: int, accept: str) -> None:
    import gzip

    for _ in sys.stdin:
        begun = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/metrics", headers={"Accept": accept, "Accept-Encoding": "gzip"})
        body = connection.getresponse().read()
        milliseconds = (time.perf_counter() - begun) * 1000
        connection.close()
        series = sum(not line.startswith(b"#") for line in gzip.decompress(body).splitlines())
        print(json.dumps([milliseconds, len(body), series]), flush=True)


class Measured:
    """A supervisor in this process's main thread, measured from a second one."""

    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        self.options = options
        self.rows: list[dict[str, object]] = []
        self.urls: list[str] = []
        run_dir = directory / "run"
        ours = (
            sys.executable, __file__, "--layers", str(options.layers), "--experts", str(options.experts),
            "--ctas", str(options.ctas),
        )  # fmt: skip
        # a page has 16 slots on the CPU
        kind = "cuda" if options.ctas > 16 else "cpu"
        self.supervisor = Supervisor(
            TreePlan(
                run_dir=run_dir,
                flight_dir=directory / "flights",
                devices=tuple(f"{kind}:{index}" for index in range(options.devices)),
                arena_bytes=4096,
                drain_s=0.1,
                probe=None,
                weights_command=(*ours, "--play", "weights", "--run-dir", str(run_dir)),
                worker_command=(*ours, "--play", "worker", "--run-dir", str(run_dir)),
                gateway_command=(sys.executable, "-c", "import signal; signal.pause()"),
                environment={},
                watchdog=WatchdogSettings(port=0),
                recovery=RecoverySettings(
                    # the played workers import nothing
                    spare_process=False,
                    answer_deadline_s=3600,
                    host_deadline_s=3600,
                    startup_deadline_s=3600,
                    stall_floor_s=3600,
                    stall_ceiling_s=3600,
                ),
                chaos=False,
                version="0",
                prepare=lambda _: None,
                announce=lambda *_: None,
            )
        )
        self._lags: list[float] = []
        self._observe = self.supervisor.metrics.loop_lag.observe
        self.supervisor.metrics.loop_lag.observe = self._lag  # type: ignore[method-assign]

    def _lag(self, seconds: float) -> None:
        self._lags.append(seconds * 1000)
        self._observe(seconds)

    def measure(self) -> None:
        try:
            self._wait_for_workers()
            port = int(self.supervisor._http_url.rpartition(":")[2])
            for name, accept in (("text", ""), ("openmetrics", OPEN_METRICS)):
                self.rows.append(self._measure(name, Scraper(port, accept)))
        finally:
            self.supervisor._exit = 0

    def _wait_for_workers(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while any(worker.state != "ready" for worker in self.supervisor._view.workers):
            if time.monotonic() > deadline:
                raise TimeoutError("the workers are not ready")
            time.sleep(0.05)

    def _measure(self, name: str, scraper: Scraper) -> dict[str, object]:
        scraper.scrape()
        taken: list[tuple[float, int, int]] = []
        lags: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(self.options.rounds):
            for scraping in (False, True):
                self._lags.clear()
                end = time.monotonic() + self.options.seconds
                while time.monotonic() < end:
                    if scraping:
                        taken.append(scraper.scrape())
                    time.sleep(self.options.interval)
                lags[scraping] += self._lags
        scraper.close()
        times = [milliseconds for milliseconds, _, _ in taken]
        # only here: it imports torch, which the children need not wait for
        from rows import describe_machine, reproduce

        return {
            "format": name,
            "devices": self.options.devices,
            "layers": self.options.layers,
            "experts": self.options.experts,
            "series": taken[-1][2],
            "size_bytes_gzip": taken[-1][1],
            "scrapes": len(taken),
            "scrape_p50_ms": round(statistics.median(times), 1),
            "scrape_max_ms": round(max(times), 1),
            "scrape_promise_ms": 50,
            "interval_s": self.options.interval,
            **lag_columns(lags),
            "turns": len(lags[False]) + len(lags[True]),
            **describe_machine(),
            "commit": self.options.commit,
            "command": reproduce(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/scrape.py", description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--layers", type=int, default=64)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--ctas", type=int, default=0, help="with a launch that is outstanding, in each worker")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each half of a round")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between scrapes")
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    for hidden in ("--accept", "--name", "--device", "--weights"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--generation", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--scrape", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--run-dir", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--play", choices=("weights", "worker"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scrape is not None:
        scraper(options.scrape, options.accept)
        return 0
    if options.play is not None:
        die_with_parent()
        (holder if options.play == "weights" else worker)(options.run_dir, options)
        return 0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory(prefix="fdmoe-bench-", dir="/dev/shm") as directory:
        measured = Measured(Path(directory), options)
        thread = threading.Thread(target=measured.measure)
        thread.start()
        measured.supervisor.run()
        thread.join()
    from rows import write_rows

    write_rows(measured.rows, options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
