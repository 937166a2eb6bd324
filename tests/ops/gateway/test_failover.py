"""Workers that stall, die and speak too late; clients that leave. No request is lost, none is answered wrong."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
from structlog.testing import capture_logs

from fdmoe_watchdog.messages import Answer, Route


def ones(tokens: int) -> np.ndarray:
    return np.ones((tokens, 8), np.float32)


def whole(tree) -> bool:
    return tree.free_bytes == tree.gateway.allocator.size_bytes


def test_a_fenced_worker_neither_answers_nor_spoils_an_answer(tree, wait_until) -> None:
    stalled, standby = tree.worker("a", 1), tree.worker("b", 1, path="baseline")
    tree.route(stalled)
    request = tree.ask_later(ones(3))
    old = stalled.next_batch()
    tree.fence(stalled)
    tree.route(standby)
    new = standby.next_batch()
    assert new.segments[0].input_offset == old.segments[0].input_offset
    standby.compute(new)
    with capture_logs() as logs:
        stalled.answer(old, factor=-7.0)  # late, and wrong: first it writes its output, then it says so
        wait_until(lambda: bool(logs), "the log line")
    assert {key: logs[0][key] for key in ("event", "worker", "generation", "batch", "dropped")} == {
        "event": "answer_dropped",
        "worker": "a",
        "generation": 1,
        "batch": old.batch,
        "dropped": 1,
    }
    assert standby.channel is not None
    standby.channel.send(Answer(1, new.batch, "baseline", 1000))
    result = request.result()
    assert np.array_equal(result.as_numpy("output"), 2 * ones(3))
    parameters = {"fdmoe_path": "baseline", "fdmoe_worker": "b", "fdmoe_generation": 1, "fdmoe_replayed": True}
    assert result.get_response()["parameters"] == parameters
    assert tree.metric("fdmoe_replayed_requests_total") == 1
    output_bytes = 256
    wait_until(
        lambda: tree.free_bytes == tree.gateway.allocator.size_bytes - output_bytes,
        "all but the fenced worker's output is free",
    )
    tree.gone(stalled)
    wait_until(lambda: whole(tree), "its end frees that too")


def test_an_answer_of_the_old_generation_number_on_the_new_connection_is_dropped(tree) -> None:
    worker = tree.worker("a", 4)
    tree.route(worker)
    request = tree.ask_later(ones(1))
    batch = worker.next_batch()
    worker.generation = 3
    worker.answer(batch, factor=-7.0)
    worker.generation = 4
    worker.answer(batch)
    assert np.array_equal(request.result().as_numpy("output"), 2 * ones(1))


def test_what_waits_and_what_comes_during_a_failover_is_served_after_it(tree, wait_until) -> None:
    stalled, standby = tree.worker("a", 1), tree.worker("b", 1, automatic=True)
    tree.route(stalled)
    requests = [tree.ask_later(ones(1))]
    stalled.next_batch()
    requests.append(tree.ask_later(ones(2)))
    wait_until(lambda: tree.metric("fdmoe_queue_depth") == 1, "one waits")
    tree.fence(stalled)
    wait_until(lambda: tree.get("/readyz")[0] == 503, "not ready")
    assert tree.get("/startupz")[0] == 200
    requests.append(tree.ask_later(ones(3)))
    wait_until(lambda: tree.metric("fdmoe_queue_depth") == 3, "three wait")
    tree.route(standby)
    for tokens, request in enumerate(requests, 1):
        result = request.result()
        assert np.array_equal(result.as_numpy("output"), 2 * ones(tokens))
        assert result.get_response()["parameters"]["fdmoe_replayed"] is (tokens == 1)
    assert standby.submitted == 1, "all three went in one batch"
    tree.gone(stalled)
    wait_until(lambda: whole(tree), "all memory is back")


@pytest.mark.parametrize("told", ["gone", "fence and gone"])
def test_a_worker_that_dies_costs_its_requests_nothing_but_time(tree, wait_until, told: str) -> None:
    dying, standby = tree.worker("a", 1), tree.worker("b", 1, automatic=True)
    tree.route(dying)
    request = tree.ask_later(ones(2))
    dying.next_batch()
    dying.stop()
    wait_until(lambda: tree.get("/readyz")[0] == 503, "not ready")
    assert tree.metric("fdmoe_queue_depth") == 1
    if told == "fence and gone":
        tree.fence(dying)
    tree.gone(dying)
    tree.route(standby)
    assert np.array_equal(request.result().as_numpy("output"), 2 * ones(2))
    wait_until(lambda: whole(tree), "all memory is back")


def test_a_route_to_nobody_waits_for_the_next(tree) -> None:
    missing, standby = tree.worker("a", 1), tree.worker("b", 1, automatic=True)
    missing.stop()
    tree.control.send(
        Route(missing.name, missing.generation, str(missing.listener.path), str(missing.page.path), "cpu")
    )
    tree.route(standby)
    assert np.array_equal(tree.ask(ones(1)).as_numpy("output"), 2 * ones(1))


def leave(tree, tokens: int) -> socket.socket:
    """A client that has sent its whole request and can be closed."""
    row = {"name": "hidden_states", "shape": [tokens, 8], "datatype": "FP32", "data": [1.0] * 8 * tokens}
    body = json.dumps({"inputs": [row]})
    connection = socket.create_connection(("127.0.0.1", tree.port), timeout=10)
    head = f"POST /v2/models/demo/layers.0/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall((head + body).encode())
    return connection


def test_clients_that_go_away_leave_nothing_behind(tree, wait_until) -> None:
    worker = tree.worker("a", 1)
    tree.route(worker)
    running = leave(tree, 3)
    batch = worker.next_batch()
    waiting = leave(tree, 4)
    staying = tree.ask_later(ones(2))
    wait_until(lambda: tree.metric("fdmoe_queue_depth") == 2, "the queue")
    waiting.close()
    wait_until(lambda: tree.metric("fdmoe_queue_depth") == 1, "the queue without the one that left")
    running.close()
    wait_until(lambda: tree.metric("fdmoe_requests_in_flight") == 1, "the one that stays")
    worker.answer(batch)
    last = worker.next_batch()
    assert [segment.tokens for segment in last.segments] == [2]
    worker.answer(last)
    assert np.array_equal(staying.result().as_numpy("output"), 2 * ones(2))
    wait_until(lambda: whole(tree), "all memory is back")
    labels = {"layer": "demo/layers.0", "path": "none", "code": "499"}
    assert tree.metric("fdmoe_request_duration_seconds_count", **labels) == 2


def test_a_client_that_goes_away_inside_its_body_leaves_nothing_behind(tree, wait_until) -> None:
    tree.route(tree.worker("a", 1))
    row = {"name": "hidden_states", "shape": [64, 8], "datatype": "FP32", "parameters": {"binary_data_size": 2048}}
    head = json.dumps({"inputs": [row]})
    connection = socket.create_connection(("127.0.0.1", tree.port), timeout=10)
    connection.sendall(
        f"POST /v2/models/demo/layers.0/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(head) + 2048}\r\n"
        f"Inference-Header-Content-Length: {len(head)}\r\n\r\n{head}half".encode()
    )
    wait_until(lambda: not whole(tree), "its areas are taken")
    connection.close()
    wait_until(lambda: whole(tree), "all memory is back")


def test_when_the_watchdog_leaves_nobody_is_kept_waiting(tree) -> None:
    worker = tree.worker("a", 1)
    tree.route(worker)
    request = tree.ask_later(ones(1))
    worker.next_batch()
    tree.control.close()
    error = request.result()
    assert (error.status(), error.message()) == ("503", "the service is stopping")
