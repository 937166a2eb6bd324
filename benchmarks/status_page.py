"""`python benchmarks/status_page.py`: what open status pages cost the watchdog's loop, and what they are sent.

The tree of benchmarks/scrape.py: a real supervisor over played workers, in each of which a launch is outstanding whose
CTAs all beat ten times a second, so that every document has all heat maps in it. As many readers as the watchdog serves
at once read from a process of their own. Rounds without and with them take turns; the lag is how much later than
planned a turn of the loop came. `view_us` is what the loop itself does for the page, 20 times a second, readers or not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import structlog
from scrape import Measured, lag_columns

from fdmoe_watchdog.status_page.stream import READERS


class Readers:
    """A process whose threads each read the stream until `close`; they are all connected when this is made."""

    def __init__(self, port: int, count: int) -> None:
        command = (sys.executable, __file__, "--read", str(port), "--readers", str(count))
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "reading\n"

    def close(self) -> list[int]:
        """The sizes of all documents of one reader, the first one left out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        sizes: list[int] = json.loads(self._process.stdout.readline())
        self._process.wait(10)
        return sizes


def read(port: int, count: int) -> None:
    answers = []
    for _ in range(count):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/events")
        answers.append(connection.getresponse())
    assert [answer.status for answer in answers] == [200] * count
    sizes: list[int] = []

    def follow(answer: http.client.HTTPResponse, found: list[int]) -> None:
        while line := answer.readline():
            if line.startswith(b"data: "):
                found.append(len(line))

    for index, answer in enumerate(answers):
        threading.Thread(target=follow, args=(answer, sizes if not index else []), daemon=True).start()
    print("reading", flush=True)
    sys.stdin.read()
    print(json.dumps(sizes[1:]), flush=True)


class MeasuredPage(Measured):
    def __init__(self, directory: Path, options: argparse.Namespace) -> None:
        super().__init__(directory, options)
        self._views: list[float] = []
        self._take = self.supervisor._photographer.take
        self.supervisor._photographer.take = self._timed  # type: ignore[method-assign]

    def _timed(self, *arguments: object) -> object:
        begun = time.perf_counter()
        live = self._take(*arguments)  # type: ignore[arg-type]
        self._views.append((time.perf_counter() - begun) * 1e6)
        return live

    def measure(self) -> None:
        try:
            self._wait_for_workers()
            self.rows.append(self._row(int(self.supervisor._http_url.rpartition(":")[2])))
        finally:
            self.supervisor._exit = 0

    def _row(self, port: int) -> dict[str, object]:
        lags: dict[bool, list[float]] = {False: [], True: []}
        sizes: list[int] = []
        for _ in range(self.options.rounds):
            for reading in (False, True):
                readers = Readers(port, self.options.readers) if reading else None
                self._lags.clear()
                time.sleep(self.options.seconds)
                lags[reading] += self._lags
                if readers is not None:
                    sizes += readers.close()
        seconds = self.options.rounds * self.options.seconds
        # only here: it imports torch, which the children need not wait for
        from rows import describe_machine, reproduce

        return {
            "devices": self.options.devices,
            "ctas": self.options.ctas,
            "readers": self.options.readers,
            "documents_per_s": round(len(sizes) / seconds, 2),
            "document_p50_bytes": round(statistics.median(sizes)),
            "document_max_bytes": max(sizes),
            "view_p50_us": round(statistics.median(self._views), 1),
            **lag_columns(lags),
            **{f"loop_lag_max_ms_{name}": round(max(lags[name == "with"]), 2) for name in ("without", "with")},
            "turns": len(lags[False]) + len(lags[True]),
            **describe_machine(),
            "commit": self.options.commit,
            "command": reproduce(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python benchmarks/status_page.py", description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--ctas", type=int, default=132)
    parser.add_argument("--readers", type=int, default=READERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each half of a round")
    parser.add_argument("--commit", default="unknown", help="written into each row")
    parser.add_argument("--csv", type=Path, help="file to write; standard output otherwise")
    parser.add_argument("--read", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        read(options.read, options.readers)
        return 0
    options.layers, options.experts = 4, 8
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("warning"))
    with tempfile.TemporaryDirectory(prefix="fdmoe-bench-", dir="/dev/shm") as directory:
        measured = MeasuredPage(Path(directory), options)
        thread = threading.Thread(target=measured.measure)
        thread.start()
        measured.supervisor.run()
        thread.join()
    from rows import write_rows

    write_rows(measured.rows, options.csv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
