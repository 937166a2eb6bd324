"""SIGTERM to a real gateway process: what has come is finished, what comes is refused, and nobody waits for nothing."""

from __future__ import annotations

import json
import signal
import time

import pytest
import raw_http

from fdmoe_watchdog.messages import Route

DEADLINE_S = 10.0


def drain(process, wait_until) -> None:
    """Returns when the gateway has heard of it."""
    process.process.send_signal(signal.SIGTERM)
    wait_until(lambda: process.get("/readyz")[1] == b"draining\n", "/readyz says draining")


def send(process, request: bytes):
    """A connection on which this has been sent."""
    connection = raw_http.connect(process.port)
    connection.sendall(request)
    return connection


def test_what_is_in_flight_and_queued_is_finished_and_what_comes_is_refused(process, wait_until) -> None:
    worker = process.worker("a", 1)
    process.route(worker)
    running = send(process, raw_http.infer(1))
    batch = worker.next_batch()
    waiting = send(process, raw_http.infer(2))
    wait_until(lambda: process.scraped("fdmoe_queue_depth") == 1, "the queue")
    drain(process, wait_until)
    assert process.get("/v2/health/ready") == (503, b"draining\n")
    assert process.get("/v2/models/demo/layers.0/ready") == (503, b"draining\n")
    assert process.get("/livez")[0] == 200
    refused = raw_http.exchange(process.port, raw_http.infer(3))
    assert (refused.status, refused.error) == (503, "draining: no new requests are taken")
    assert (refused.headers["retry-after"], refused.headers["connection"]) == ("1", "close")
    assert process.scraped("fdmoe_refused_requests_total", reason="draining") == 1
    worker.answer(batch)
    worker.answer(worker.next_batch())
    for tokens, connection in ((1, running), (2, waiting)):
        answer = raw_http.receive(connection)
        assert raw_http.is_right(answer, tokens)
        assert answer.headers["connection"] == "close"
        assert raw_http.ended(connection)
        connection.close()
    assert process.process.wait(DEADLINE_S) == 0
    assert [[segment.tokens for segment in batch.segments] for batch in worker.batches] == [[1], [2]]


def test_a_worker_that_fails_meanwhile_costs_its_requests_nothing(process, wait_until) -> None:
    failing, standby = process.worker("a", 1), process.worker("b", 1, path="baseline")
    process.route(failing)
    connection = send(process, raw_http.infer(2))
    failing.next_batch()
    drain(process, wait_until)
    process.fence(failing)
    process.control.send(Route(standby.name, 1, str(standby.listener.path), str(standby.page.path), "cpu"))
    standby.answer(standby.next_batch())
    answer = raw_http.receive(connection)
    assert raw_http.is_right(answer, 2)
    size = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.body[:size])["parameters"] == {
        "fdmoe_path": "baseline",
        "fdmoe_worker": "b",
        "fdmoe_generation": 1,
        "fdmoe_replayed": True,
    }
    connection.close()
    assert process.process.wait(DEADLINE_S) == 0


def test_whoever_is_left_at_the_deadline_is_told_so(running_process, wait_until) -> None:
    with running_process(drain_timeout_s=0.4) as process:
        worker = process.worker("a", 1)
        process.route(worker)
        connections = [send(process, raw_http.infer(1))]
        worker.next_batch()
        connections.append(send(process, raw_http.infer(2)))
        wait_until(lambda: process.scraped("fdmoe_queue_depth") == 1, "the queue")
        connections.append(send(process, raw_http.infer(64)[:-100]))
        wait_until(lambda: process.scraped("fdmoe_requests_in_flight") == 3, "the half body")
        started = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        for connection in connections:
            answer = raw_http.receive(connection)
            assert (answer.status, answer.error) == (503, "the service is stopping")
            assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
            connection.close()
        assert time.monotonic() - started >= 0.4
        assert process.process.wait(DEADLINE_S) == 0


def test_without_requests_it_ends_at_once(process) -> None:
    process.route(process.worker("a", 1))
    idle, half_a_head = raw_http.connect(process.port), send(process, b"POST /v2/mod")
    started = time.monotonic()
    process.process.send_signal(signal.SIGTERM)
    assert process.process.wait(DEADLINE_S) == 0
    assert time.monotonic() - started < 4.0, "drain_timeout_s is 8"
    for connection in (idle, half_a_head):
        assert raw_http.ended(connection)
        connection.close()


def test_the_second_signal_does_not_wait(running_process, wait_until) -> None:
    with running_process(drain_timeout_s=600.0) as process:
        worker = process.worker("a", 1)
        process.route(worker)
        connection = send(process, raw_http.infer(1))
        worker.next_batch()
        drain(process, wait_until)
        process.process.send_signal(signal.SIGTERM)
        answer = raw_http.receive(connection)
        assert (answer.status, answer.error) == (503, "the service is stopping")
        connection.close()
        assert process.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize("megabytes", [1, 16])
def test_a_client_that_is_still_sending_reads_why_it_is_refused(process, wait_until, megabytes: int) -> None:
    worker = process.worker("a", 1)
    process.route(worker)
    held = send(process, raw_http.infer(1))
    worker.next_batch()
    drain(process, wait_until)
    with raw_http.connect(process.port) as connection:
        connection.sendall(raw_http.post(bytes(megabytes << 20)))  # a reset would raise here, or lose the answer
        answer = raw_http.receive(connection)
        assert (answer.status, answer.error) == (503, "draining: no new requests are taken")
        assert raw_http.ended(connection)
    held.close()
