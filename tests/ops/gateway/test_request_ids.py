"""A request's id through the gateway: answers, refusals, the worker's batch, log lines, and what the watchdog asks."""

from __future__ import annotations

import json
import re
import socket

import numpy as np
import pytest
from structlog.testing import capture_logs

from fdmoe_watchdog import messages
from fdmoe_watchdog.messages import AskInFlight, InFlight

PATH = "/v2/models/demo/layers.0/infer"
BODY = json.dumps({"inputs": [{"name": "hidden_states", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}]})
MADE = re.compile("[0-9a-f]{12}-[0-9a-f]+")


def with_id(own_id: str) -> str:
    return json.dumps({"id": own_id, **json.loads(BODY)})


def test_the_answer_has_the_clients_id(serving) -> None:
    _, headers, answer = serving.request("POST", PATH, with_id("b"), {"X-Request-Id": "a-7"})
    assert (headers["x-request-id"], json.loads(answer)["id"]) == ("a-7", "b"), "the body's own id stays in the body"
    _, headers, answer = serving.request("POST", PATH, BODY, {"X-Request-Id": "a-7"})
    assert (headers["x-request-id"], json.loads(answer)["id"]) == ("a-7", "a-7")
    _, headers, answer = serving.request("POST", PATH, with_id("ä b"))
    assert (headers["x-request-id"], json.loads(answer)["id"]) == ("%C3%A4%20b", "ä b")
    _, headers, answer = serving.request("POST", PATH, BODY, {"X-Request-Id": "x" * 129})
    assert MADE.fullmatch(headers["x-request-id"])
    assert json.loads(answer)["id"] == headers["x-request-id"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", PATH, "no JSON", 400),
        ("POST", "/v2/models/nobody/infer", BODY, 404),
        ("GET", PATH, None, 405),
        ("POST", "/v3/models/demo/layers.0/infer", BODY, 404),
        ("POST", "/v2", BODY, 405),
    ],
)
def test_a_refusal_has_it_too(serving, method: str, path: str, body: str | None, status: int) -> None:
    found, headers, _ = serving.request(method, path, body, {"X-Request-Id": "a-7"})
    assert (found, headers["x-request-id"]) == (status, "a-7")
    assert MADE.fullmatch(serving.request(method, path, body)[1]["x-request-id"])


def test_what_is_no_http_gets_a_new_one(serving) -> None:
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as client:
        client.sendall(b"what?\r\n\r\n")
        answer = client.makefile("rb").read().decode()
    assert re.search("\r\nx-request-id: [0-9a-f]{12}-[0-9a-f]+\r\n", answer)


def test_the_worker_is_told_whose_rows_they_are(tree) -> None:
    worker = tree.worker("a", 1)
    tree.route(worker)
    later = tree.request_later("POST", PATH, BODY, {"X-Request-Id": "first"})
    batch = worker.next_batch()
    assert batch.requests == ("first",)
    others = [tree.request_later("POST", PATH, BODY, {"X-Request-Id": f"other-{number}"}) for number in range(2)]
    tree.wait_for_queue(2)
    worker.answer(batch)
    batch = worker.next_batch()
    assert sorted(batch.requests) == ["other-0", "other-1"]
    worker.error = "the device is on fire"
    with capture_logs() as logs:
        worker.answer(batch)
        answers = [other.result() for other in others]
    assert later.result()[0] == 200
    assert [(status, headers["x-request-id"]) for status, headers, _ in answers] == [(500, "other-0"), (500, "other-1")]
    failed = next(entry for entry in logs if entry["event"] == "batch_failed")
    assert (failed["worker"], failed["batch"], failed["reason"]) == ("a", batch.batch, "the device is on fire")
    assert sorted(failed["requests"]) == ["other-0", "other-1"]


def test_a_replay_says_which_requests(tree) -> None:
    stalled, standby = tree.worker("a", 1), tree.worker("b", 1, automatic=True, path="baseline")
    tree.route(stalled)
    later = tree.request_later("POST", PATH, BODY, {"X-Request-Id": "carried"})
    stalled.next_batch()
    tree.control.send(AskInFlight("a", 1, 9))
    assert tree.heard(InFlight) == InFlight("a", 1, 9, 1, ("carried",))
    with capture_logs() as logs:
        tree.control.send(messages.Fence("a", 1, "stall"))
        tree.control.send(AskInFlight("a", 1, 9))
        assert tree.heard(InFlight) == InFlight("a", 1, 9, 1, ("carried",)), "what it had when it was fenced"
        tree.route(standby)
        status, headers, answer = later.result()
    assert (status, headers["x-request-id"]) == (200, "carried")
    assert json.loads(answer)["parameters"]["fdmoe_replayed"] is True
    fenced = next(entry for entry in logs if entry["event"] == "fence")
    assert (fenced["cause"], fenced["requests_again"], list(fenced["requests"])) == ("stall", 1, ["carried"])
    replayed = next(entry for entry in logs if entry["event"] == "replayed_requests")
    assert (replayed["worker"], replayed["generation"], replayed["count"]) == ("b", 1, 1)
    assert replayed["requests"] == ["carried"]
    tree.gone(stalled)
    tree.control.send(AskInFlight("a", 1, 9))
    assert tree.heard(InFlight) == InFlight("a", 1, 9, 0, ()), "it is forgotten with the process"


def test_our_own_failure_is_logged_with_the_requests_names(tree, monkeypatch) -> None:
    tree.route(tree.worker("a", 1, automatic=True))

    def fail(*_: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr("fdmoe_ops.gateway.protocol.parse", fail)
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"X-Request-Id": "a-7", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    with capture_logs() as logs:
        status, found, _ = tree.request("POST", PATH, BODY, headers)
    assert (status, found["x-request-id"]) == (500, "a-7")
    (failed,) = [entry for entry in logs if entry["event"] == "request_failed"]
    assert (failed["request_id"], failed["trace_id"], failed["layer"]) == ("a-7", trace, "demo/layers.0")
    assert failed["exc_info"] is True


def test_of_a_large_batch_the_first_requests_are_named(running_tree) -> None:
    with running_tree(max_queue_requests=64) as tree:
        worker = tree.worker("a", 1)
        tree.route(worker)
        first = tree.ask_later(np.ones((1, 8), np.float32))
        batch = worker.next_batch()
        many = [tree.request_later("POST", PATH, BODY, {"X-Request-Id": f"n-{number}"}) for number in range(40)]
        tree.wait_for_queue(40)
        worker.answer(batch)
        batch = worker.next_batch()
        assert len(batch.segments) == 40
        assert len(set(batch.requests)) == messages.MAX_NAMED_REQUESTS == 32
        worker.answer(batch)
        first.result()
        assert {answer.result()[0] for answer in many} == {200}
