"""The exposition of what workers count, literally, in both formats; and what a large tree's scrape holds."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fdmoe_watchdog.count_metrics import CountCollector, CountLines
from fdmoe_watchdog.counts import CountPage
from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.ledger import Ledger

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Scraped:
    """A ledger of one worker behind the watchdog's /metrics."""

    def __init__(self, directory: Path, layers: int = 1, experts: int = 2, *, per_expert: bool = True) -> None:
        self.ledger = Ledger(lambda worker, reason: pytest.fail(f"{worker}: {reason}"))
        self.page = CountPage(directory / "c", generation=1, layers=layers, experts=experts)
        self.names = tuple(f"m/layers.{index}" for index in range(layers))
        self.arguments = (self.names, experts)
        self.directory = directory
        registry = CollectorRegistry()
        registry.register(CountCollector(self.ledger))
        self.application = Exposition(registry, CountLines(self.ledger, experts=per_expert).text)

    def ready(self) -> None:
        self.ledger.came("a", self.directory / "c", *self.arguments)

    def get(self, **environment: str) -> tuple[str, dict[str, str], bytes]:
        said: list[Any] = []

        def start(status: str, headers: list[tuple[str, str]]) -> None:
            said.extend((status, dict(headers)))

        asked = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", **environment}
        body = b"".join(self.application(asked, start))  # type: ignore[arg-type]
        assert said[1].get("Content-Length", str(len(body))) == str(len(body)) or asked["REQUEST_METHOD"] == "HEAD"
        return said[0], said[1], body


def test_the_series_of_the_experts(in_memory: Path) -> None:
    scraped = Scraped(in_memory, layers=2)
    scraped.ready()
    scraped.page.computed(0, [3, 0], 0)
    scraped.page.computed(1, [0, 2**40], 0)
    _, headers, body = scraped.get()
    assert headers["Content-Type"].startswith("text/plain")
    assert [line for line in body.decode().splitlines() if "expert_tokens" in line] == [
        "# HELP fdmoe_expert_tokens_total "
        "Tokens that each routed expert has computed on the fused path, by the kernel's own count.",
        "# TYPE fdmoe_expert_tokens_total counter",
        'fdmoe_expert_tokens_total{expert="0",layer="m/layers.0"} 3.0',
        'fdmoe_expert_tokens_total{expert="1",layer="m/layers.0"} 0.0',
        'fdmoe_expert_tokens_total{expert="0",layer="m/layers.1"} 0.0',
        'fdmoe_expert_tokens_total{expert="1",layer="m/layers.1"} 1099511627776.0',
    ]


def test_both_formats_are_what_their_parsers_take_and_say_the_same(in_memory: Path) -> None:
    scraped = Scraped(in_memory)
    scraped.ready()
    scraped.page.ran("fused", 3, 50_000)
    scraped.page.computed(0, [3, 4], 77)
    _, _, plain = scraped.get()
    _, headers, open_metrics = scraped.get(HTTP_ACCEPT=OPEN_METRICS)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert open_metrics.endswith(b"} 4.0\n# EOF\n")
    ours = _samples(parse_open_metrics(open_metrics.decode()))
    assert ours == _samples(parse_text(plain.decode()))
    assert ours["fdmoe_expert_tokens_total", ("1", "m/layers.0")] == 4.0
    assert ours["fdmoe_comm_bytes_total", ("local",)] == 77.0
    assert ours["fdmoe_layer_duration_seconds_bucket", ("4", "4e-05", "fused")] == 0.0
    assert ours["fdmoe_layer_duration_seconds_bucket", ("4", "6.3e-05", "fused")] == 1.0
    assert ours["fdmoe_layer_duration_seconds_bucket", ("4", "+Inf", "fused")] == 1.0
    assert ours["fdmoe_layer_duration_seconds_sum", ("4", "fused")] == 5e-05
    assert ours["fdmoe_layer_duration_seconds_count", ("4", "fused")] == 1.0
    assert {labels for name, labels in ours if name.endswith("_count")} == {("4", "fused")}, "only what has run"


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
def test_before_a_worker_is_ready_the_families_are_there_without_series(in_memory: Path, accept: str) -> None:
    _, _, body = Scraped(in_memory).get(HTTP_ACCEPT=accept)
    parse = parse_open_metrics if accept else parse_text
    families = list(parse(body.decode()))
    assert [family.name for family in families] == [
        "fdmoe_comm_bytes", "fdmoe_expert_imbalance_ratio", "fdmoe_layer_duration_seconds", "fdmoe_expert_tokens",
    ]  # fmt: skip
    assert [family.samples for family in families] == [[], [], [], []]


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
def test_the_series_of_the_experts_can_be_left_out(in_memory: Path, accept: str) -> None:
    scraped = Scraped(in_memory, per_expert=False)
    scraped.ready()
    scraped.page.computed(0, [300, 900], 0)
    scraped.get(HTTP_ACCEPT=accept)
    scraped.page.computed(0, [300, 900], 0)
    _, _, body = scraped.get(HTTP_ACCEPT=accept)
    assert b"expert_tokens" not in body
    # how uneven they are is told all the same
    assert b'fdmoe_expert_imbalance_ratio{layer="m/layers.0"} 1.5\n' in body


def test_compressed_where_it_is_taken(in_memory: Path) -> None:
    scraped = Scraped(in_memory)
    _, headers, body = scraped.get(HTTP_ACCEPT_ENCODING="gzip")
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(body) == scraped.get()[2]
    assert headers["Vary"] == "Accept, Accept-Encoding"


def test_what_else_may_be_asked(in_memory: Path) -> None:
    scraped = Scraped(in_memory)
    status, headers, body = scraped.get(REQUEST_METHOD="HEAD")
    assert (status, body, int(headers["Content-Length"])) == ("200 OK", b"", len(scraped.get()[2]))
    status, headers, body = scraped.get(REQUEST_METHOD="POST")
    assert (status, headers["Allow"], body) == ("405 Method Not Allowed", "GET, HEAD", b"")
    status, _, body = scraped.get(HTTP_ACCEPT="application/openmetrics-text;version=x.y")
    assert status == "406 Not Acceptable"
    assert body == b"Accept is 'application/openmetrics-text;version=x.y'; a version in it is digits with dots\n"


def test_a_large_trees_series_are_as_many_as_the_documents_say(in_memory: Path) -> None:
    """64 layers of 256 experts, with launches of each path in 15 buckets of tokens (up to 16384)."""
    scraped = Scraped(in_memory, layers=64, experts=256)
    scraped.ready()
    for path in ("fused", "baseline"):
        for power in range(15):
            scraped.page.ran(path, 1 << power, 100_000)  # type: ignore[arg-type]
    for layer in range(64):
        scraped.page.computed(layer, [2**40] * 256, 2**50)
    series = [line for line in scraped.get()[2].decode().splitlines() if not line.startswith("#")]
    assert sum("expert_tokens" in line for line in series) == 64 * 256
    assert sum("layer_duration" in line for line in series) == 2 * 15 * (31 + 1 + 2)


def _samples(families: Iterable[Any]) -> dict[tuple[str, tuple[str, ...]], float]:
    return {
        (sample.name, tuple(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }
