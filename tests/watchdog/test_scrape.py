"""The watchdog's /metrics: OpenMetrics where it is asked for, valid either way, and a clear no to nonsense."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from fdmoe_watchdog.exposition import Exposition
from fdmoe_watchdog.http import HttpServer
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.metrics import Metrics
from fdmoe_watchdog.status import GatewayView, TreeView

VIEW = TreeView(
    version="1", path="down", chaos=False, draining=False, uptime_s=0.0, devices=(), workers=(),
    gateway=GatewayView("", 0), gpus=(), events=(), last_flight=None,
)  # fmt: skip


@pytest.fixture
def address() -> Iterator[str]:
    ledger = Ledger(lambda worker, reason: pytest.fail(f"{worker}: {reason}"))
    metrics = Metrics(lambda: VIEW, ledger, "1", ("cpu",))
    no_page = pytest.fail  # nobody looks at the page here
    server = HttpServer("127.0.0.1", 0, Exposition(metrics.registry), lambda: VIEW, no_page, lambda: True)
    server.start()
    yield server.url.removeprefix("http://")
    server.stop()


def scraped(address: str, accept: str | None) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/metrics", headers={} if accept is None else {"Accept": accept})
    answer = connection.getresponse()
    found = answer.status, answer.headers["Content-Type"], answer.read().decode()
    connection.close()
    return found


def test_openmetrics_and_text_have_the_same_samples(address: str) -> None:
    status, kind, openmetrics = scraped(address, "application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert (status, kind.partition("; escaping")[0]) == (
        200, "application/openmetrics-text; version=1.0.0; charset=utf-8",
    )  # fmt: skip
    assert openmetrics.endswith("\n# EOF\n")
    status, kind, plain = scraped(address, None)
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    families = list(text_string_to_metric_families(openmetrics))
    ours = {(s.name, *sorted(s.labels.items())) for family in families for s in family.samples}
    assert ours == {(s.name, *sorted(s.labels.items())) for family in plain_families(plain) for s in family.samples}
    types = {family.name: family.type for family in families}
    assert types["fdmoe_stalls"] == "counter"
    assert types["fdmoe_build"] == "info"
    names = {name for name, *_ in ours}
    assert {"fdmoe_stalls_total", "fdmoe_stalls_created", "fdmoe_build_info"} <= names


def test_a_version_that_is_none_is_refused(address: str) -> None:
    status, _, text = scraped(address, "application/openmetrics-text; version=x")
    assert (status, text) == (
        406, "Accept is 'application/openmetrics-text; version=x'; a version in it is digits with dots\n",
    )  # fmt: skip
