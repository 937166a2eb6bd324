"""Every refusal over HTTP: its status, its words, and that it leaves nothing behind."""

from __future__ import annotations

import json
import socket

import numpy as np
import pytest
import tritonclient.http as triton

from fdmoe_ops.gateway.pace import Pace

INFER = "/v2/models/demo/layers.0/infer"
HEADER_LENGTH = "Inference-Header-Content-Length"
ROW = {"name": "hidden_states", "shape": [1, 8], "datatype": "FP32", "data": [1.0] * 8}
BINARY_ROW = {"name": "hidden_states", "shape": [1, 8], "datatype": "FP32", "parameters": {"binary_data_size": 32}}


def binary(row: dict[str, object], data: bytes) -> tuple[bytes, dict[str, str]]:
    head = json.dumps({"inputs": [row]}).encode()
    return head + data, {HEADER_LENGTH: str(len(head))}


def refused(serving, path: str, body: object, headers: dict[str, str] | None = None) -> tuple[int, str]:
    status, answered, answer = serving.request("POST", path, body, headers)
    assert answered["content-type"] == "application/json"
    assert serving.free_bytes == serving.gateway.allocator.size_bytes
    document = json.loads(answer)
    assert list(document) == ["error"]
    return status, document["error"]


def test_unknown_layers_and_versions_name_the_known_ones(serving) -> None:
    served = "demo/layers.0, demo/layers.1, demo/layers.2"
    assert refused(serving, "/v2/models/demo/infer", "{}") == (404, f"layer 'demo' is not served; these are: {served}")
    assert refused(serving, "/v2/models/demo/layers.0/versions/2/infer", "{}") == (
        404,
        "version '2' of demo/layers.0 is not served; '1' is",
    )
    with serving.client() as client, pytest.raises(triton.InferenceServerException) as caught:
        client.get_model_metadata("x/layers.9")
    assert caught.value.message() == f"layer 'x/layers.9' is not served; these are: {served}"
    status, body = serving.get("/v3")
    places = "/v2, /v2/health, /v2/models, /v2/models/LAYER, /startupz, /livez, /readyz and /metrics"
    assert (status, json.loads(body)["error"]) == (404, f"nothing is at /v3; there are {places}")


def test_methods(serving) -> None:
    for method, path, allowed in (("GET", INFER, "POST"), ("DELETE", "/v2", "GET"), ("POST", "/livez", "GET")):
        status, headers, body = serving.request(method, path)
        assert (status, headers["allow"]) == (405, allowed)
        assert json.loads(body)["error"] == f"the method is {method}; {allowed} is allowed"


def test_another_datatype(serving) -> None:
    assert refused(serving, "/v2/models/demo/layers.1/infer", json.dumps({"inputs": [ROW]})) == (
        400,
        "hidden_states has datatype 'FP32'; demo/layers.1 takes 'BF16'",
    )


def test_too_many_tokens(serving) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        serving.ask(np.ones((65, 8), np.float32))
    assert (caught.value.status(), caught.value.message()) == (
        "413",
        "hidden_states has 65 tokens; at most 64 are allowed in a request",
    )


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed_bodies(serving, compression: str) -> None:
    with pytest.raises(triton.InferenceServerException) as caught:
        serving.ask(np.ones((1, 8), np.float32), request_compression_algorithm=compression)
    assert (caught.value.status(), caught.value.message()) == (
        "415",
        f"Content-Encoding is '{compression}'; bodies are taken as they are ('identity')",
    )


def test_a_body_that_is_no_request(serving) -> None:
    status, text = refused(serving, INFER, "hello")
    assert status == 400
    assert text.startswith("the request is not an inference request in JSON: JSON is malformed")


@pytest.mark.parametrize(
    ("length", "text"),
    [
        ("0", "Inference-Header-Content-Length is 0; 1 to 65536 are allowed"),
        ("65537", "Inference-Header-Content-Length is 65537; 1 to 65536 are allowed"),
        ("-1", "Inference-Header-Content-Length is '-1'; a number of bytes is needed"),
        ("many", "Inference-Header-Content-Length is 'many'; a number of bytes is needed"),
        ("9", "Inference-Header-Content-Length is 9; the body has 2 bytes"),
    ],
)
def test_header_lengths(serving, length: str, text: str) -> None:
    assert refused(serving, INFER, "{}", {HEADER_LENGTH: length}) == (400, text)


@pytest.mark.parametrize("size", [31, 33])
def test_another_number_of_bytes_than_announced(serving, size: int) -> None:
    body, headers = binary(BINARY_ROW, bytes(size))
    known = refused(serving, INFER, body, headers)
    assert known == (400, f"{size} bytes follow the JSON; binary_data_size says 32")
    more = " or more" if size > 32 else ""
    chunked = refused(serving, INFER, iter([body[:-size], body[-size:]]), headers)
    assert chunked == (400, f"{size} bytes{more} follow the JSON; binary_data_size says 32")


def test_binary_data_without_the_header(serving) -> None:
    body, _ = binary(BINARY_ROW, b"")
    assert refused(serving, INFER, body) == (400, "0 bytes follow the JSON; binary_data_size says 32")


def test_a_chunked_body_that_ends_inside_its_header(serving) -> None:
    assert refused(serving, INFER, iter([b"{}"]), {HEADER_LENGTH: "9"}) == (
        400,
        "the body ends after 2 bytes; Inference-Header-Content-Length is 9",
    )


@pytest.mark.parametrize(
    ("headers", "limit", "why"),
    [
        ({}, 1 << 20, "as JSON; larger tensors go as binary data"),
        (
            {HEADER_LENGTH: "10"},
            (64 << 10) + 64 * 32,
            "as a header of at most 65536 bytes and a tensor of at most 2048",
        ),
    ],
)
def test_too_large_a_body_is_refused_before_it_is_read(serving, headers: dict[str, str], limit: int, why: str) -> None:
    lines = [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", serving.port), timeout=10) as connection:
        request = "\r\n".join([f"POST {INFER} HTTP/1.1", "Host: x", f"Content-Length: {limit + 1}", *lines, "", ""])
        connection.sendall(request.encode())
        answer = connection.recv(4096).decode()
    assert answer.startswith("HTTP/1.1 413 ")
    assert f'"the body has {limit + 1} bytes or more; at most {limit} are taken {why}"' in answer


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(serving) -> None:
    pieces = (b" " * 65536 for _ in range(130))
    status, text = refused(serving, INFER, pieces)
    assert status == 413
    assert text.endswith("bytes or more; at most 1048576 are taken as JSON; larger tensors go as binary data")


def test_a_chunked_tensor_that_never_ends_is_refused(serving) -> None:
    body, headers = binary(BINARY_ROW, b"")
    status, text = refused(serving, INFER, iter([body, *[bytes(1000)] * 5]), headers)
    assert status == 400
    assert text.endswith("bytes or more follow the JSON; binary_data_size says 32")


def test_before_the_first_route_clients_are_told_when_to_come_again(tree) -> None:
    status, headers, body = tree.request("POST", INFER, json.dumps({"inputs": [ROW]}))
    assert (status, headers["retry-after"]) == (503, "3")
    assert json.loads(body) == {"error": "no worker has been ready yet"}


@pytest.mark.parametrize(
    ("changes", "tokens", "text", "reason"),
    [
        ({"max_queue_requests": 1}, 1, "1 requests wait; at most 1 may", "queue_requests"),
        ({"max_queue_tokens": 64}, 64, "64 tokens wait; with 64 more than 64 would", "queue_tokens"),
        (
            {"max_queue_bytes": 4096},
            64,
            "4096 bytes of tensors wait; with 4096 more than 4096 would",
            "queue_bytes",
        ),
    ],
)
def test_a_full_queue(running_tree, wait_until, changes: dict[str, int], tokens: int, text: str, reason: str) -> None:
    with running_tree(**changes) as tree:
        worker = tree.worker("a", 1)
        tree.route(worker)
        x = np.ones((tokens, 8), np.float32)
        running = tree.ask_later(x)
        batch = worker.next_batch()
        waiting = tree.ask_later(x)
        wait_until(lambda: tree.metric("fdmoe_queue_depth") == 1, "the queue")
        status, headers, body = tree.request(
            "POST", INFER, json.dumps({"inputs": [{**ROW, "shape": [tokens, 8], "data": [1.0] * 8 * tokens}]})
        )
        assert (status, headers["retry-after"]) == (503, "3")
        assert json.loads(body) == {"error": text}
        assert tree.metric("fdmoe_refused_requests_total", reason=reason) == 1
        assert tree.metric("fdmoe_arena_used_bytes") == tree.gateway.allocator.size_bytes - tree.free_bytes > 0
        worker.answer(batch)
        worker.answer(worker.next_batch())
        assert np.array_equal(running.result().as_numpy("output"), 2 * x)
        assert np.array_equal(waiting.result().as_numpy("output"), 2 * x)
        assert tree.free_bytes == tree.gateway.allocator.size_bytes


def test_a_refused_client_is_told_when_what_waits_will_be_gone(
    running_tree, wait_until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "seconds_for", lambda _self, tokens: 0.11 * tokens)
    with running_tree(max_queue_tokens=64, retry_after_s=1) as tree:
        worker = tree.worker("a", 1)
        tree.route(worker)
        requests = [tree.ask_later(np.ones((1, 8), np.float32))]
        batch = worker.next_batch()
        requests.append(tree.ask_later(np.ones((50, 8), np.float32)))
        wait_until(lambda: tree.metric("fdmoe_queue_depth") == 1, "the queue")
        status, headers, _ = tree.request(
            "POST", INFER, json.dumps({"inputs": [{**ROW, "shape": [15, 8], "data": [1.0] * 8 * 15}]})
        )
        assert (status, headers["retry-after"]) == (503, "6")  # 5.5 s
        worker.answer(batch)
        worker.answer(worker.next_batch())
        assert [request.result().as_numpy("output").shape for request in requests] == [(1, 8), (50, 8)]


def test_a_request_larger_than_the_queue_could_never_be_served(running_tree) -> None:
    with running_tree(max_queue_bytes=1024) as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        assert tree.ask(np.ones((16, 8), np.float32)).as_numpy("output").shape == (16, 8)
        with pytest.raises(triton.InferenceServerException) as caught:
            tree.ask(np.ones((17, 8), np.float32))
        assert (caught.value.status(), caught.value.message()) == (
            "413",
            "hidden_states has 17 tokens; at most 16 are allowed in a request",
        )


def test_a_worker_that_cannot_is_a_500_in_its_words(tree) -> None:
    worker = tree.worker("a", 1, automatic=True, path="baseline")
    worker.error = "layer x is not served"
    tree.route(worker)
    assert tree.post({"inputs": [ROW]}) == (500, {"error": "the worker could not run it: layer x is not served"})
    assert tree.free_bytes == tree.gateway.allocator.size_bytes
    labels = {"layer": "demo/layers.0", "path": "baseline", "code": "500"}
    assert tree.metric("fdmoe_request_duration_seconds_count", **labels) == 1


def test_time_runs_out(running_tree, wait_until) -> None:
    with running_tree(request_timeout_s=0.2) as tree:
        worker = tree.worker("a", 1)
        tree.route(worker)
        running, waiting = tree.ask_later(np.ones((1, 8), np.float32)), tree.ask_later(np.ones((2, 8), np.float32))
        batch = worker.next_batch()
        for request in (running, waiting):
            error = request.result()
            assert (error.status(), error.message()) == ("504", "no worker answered within 0.2 s")
        wait_until(lambda: tree.metric("fdmoe_queue_depth") == 0, "the queue")
        assert tree.free_bytes < tree.gateway.allocator.size_bytes, "the worker may still write"
        worker.answer(batch)
        wait_until(lambda: tree.free_bytes == tree.gateway.allocator.size_bytes, "all memory is back")
        body, headers = binary(BINARY_ROW, b"")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        with socket.create_connection(("127.0.0.1", tree.port), timeout=10) as connection:
            head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) + 32}\r\n{lines}\r\n"
            connection.sendall(head.encode() + body + bytes(20))
            answer = connection.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 408 ")
        assert '{"error":"the body was not complete after 0.2 s"}' in answer
        assert tree.free_bytes == tree.gateway.allocator.size_bytes
