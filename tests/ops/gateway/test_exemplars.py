"""The gateway's scrape as OpenMetrics: valid, with the last request of each bucket; and as text, without."""

from __future__ import annotations

import json

from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

PATH = "/v2/models/demo/layers.0/infer"
BODY = json.dumps({"inputs": [{"name": "hidden_states", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}]})
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.5"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def scraped(tree, accept: dict[str, str]) -> tuple[str, str]:
    status, headers, body = tree.request("GET", "/metrics", None, accept)
    assert status == 200
    return headers["content-type"], body.decode()


def exemplars(text: str, code: str) -> list[tuple[dict[str, str], float, float]]:
    (family,) = [
        family for family in text_string_to_metric_families(text) if family.name == "fdmoe_request_duration_seconds"
    ]
    return [
        (sample.exemplar.labels, sample.exemplar.value, float(sample.labels["le"]))
        for sample in family.samples
        if sample.exemplar is not None and sample.labels["code"] == code
    ]


def test_each_bucket_keeps_its_last_request(tree) -> None:
    tree.route(tree.worker("a", 1, automatic=True))
    names = {"X-Request-Id": "a-7", "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    assert tree.request("POST", PATH, BODY, names)[0] == 200
    assert tree.request("POST", "/v2/models/nobody/infer", BODY, {"X-Request-Id": "x" * 128})[0] == 404
    kind, text = scraped(tree, OPENMETRICS)
    assert kind.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    assert text.endswith("\n# EOF\n")
    ((labels, seconds, bound),) = exemplars(text, "200")
    assert labels == {"request_id": "a-7", "trace_id": TRACE}
    assert 0 < seconds <= bound
    ((labels, _, _),) = exemplars(text, "404")
    assert labels == {"request_id": "x" * 118}


def test_openmetrics_and_text_have_the_same_samples(serving) -> None:
    serving.request("POST", PATH, BODY)
    _, openmetrics = scraped(serving, OPENMETRICS)
    kind, plain = scraped(serving, {})
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "request_id" not in plain
    ours = {family.name: family for family in text_string_to_metric_families(openmetrics)}
    assert ours["fdmoe_request_tokens"].type == "counter", "the suffix _total is the sample's and not the family's"
    found = {(s.name, *sorted(s.labels.items())) for family in ours.values() for s in family.samples}
    theirs = {(s.name, *sorted(s.labels.items())) for family in plain_families(plain) for s in family.samples}
    assert found == theirs
    assert {name for name, *_ in found if name.endswith("_created")} >= {"fdmoe_request_tokens_created"}


def test_a_version_that_is_none_is_refused(serving) -> None:
    status, _, body = serving.request("GET", "/metrics", None, {"Accept": "application/openmetrics-text; version=x"})
    assert (status, json.loads(body)["error"]) == (
        406, "Accept is 'application/openmetrics-text; version=x'; a version in it is digits with dots",
    )  # fmt: skip
