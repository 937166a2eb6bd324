"""What a served layer answers to NVIDIA's client of the protocol, and to a plain one."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest
import tritonclient.http as triton
from prometheus_client.parser import text_string_to_metric_families

from fdmoe_ops.gateway.tensors import DTYPES

random = np.random.default_rng(7)


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 17, 64])
@pytest.mark.parametrize("index", [0, 1, 2], ids=["FP32", "BF16", "FP16"])
def test_binary_both_ways(serving, layers, index: int, tokens: int) -> None:
    layer = layers[index]
    x = random.standard_normal((tokens, 8)).astype(DTYPES[layer.dtype])
    result = serving.ask(x, layer, request_id="mine")
    y = result.as_numpy("output")
    assert (y.dtype, y.shape) == (x.dtype, x.shape)
    assert y.tobytes() == (x * x.dtype.type(2)).tobytes()
    answer = result.get_response()
    assert (answer["id"], answer["model_name"]) == ("mine", layer.name)
    expected = {"fdmoe_path": "fused", "fdmoe_worker": "a", "fdmoe_generation": 1, "fdmoe_replayed": False}
    if tokens == 0:  # nobody has to compute it
        expected |= {"fdmoe_path": "none", "fdmoe_worker": "", "fdmoe_generation": 0}
    assert answer["parameters"] == expected
    assert serving.free_bytes == serving.gateway.allocator.size_bytes


@pytest.mark.parametrize("binary_input", [False, True])
@pytest.mark.parametrize("binary_output", [False, True])
def test_json_and_binary_mixed(serving, layers, binary_input: bool, binary_output: bool) -> None:
    x = random.standard_normal((3, 8)).astype(np.float32)
    tensor = triton.InferInput("hidden_states", [3, 8], "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary_input)
    output = triton.InferRequestedOutput("output", binary_data=binary_output)
    with serving.client() as client:
        result = client.infer(layers[0].name, [tensor], outputs=[output], model_version="1")
    assert np.array_equal(result.as_numpy("output"), 2 * x)
    assert ("data" in result.get_output("output")) is not binary_output


@pytest.mark.parametrize("index", [0, 1, 2], ids=["FP32", "BF16", "FP16"])
def test_json_numbers_in_every_datatype(serving, layers, index: int) -> None:
    layer = layers[index]
    rows = [[0.1 * (row + column) for column in range(8)] for row in range(2)]
    document = {
        "id": "7",
        "inputs": [{"name": "hidden_states", "shape": [2, 8], "datatype": layer.dtype, "data": rows}],
    }
    status, answer = serving.post(document, layer.name)
    x = np.array(rows).astype(DTYPES[layer.dtype])
    assert status == 200
    assert answer["outputs"] == [
        {
            "name": "output",
            "shape": [2, 8],
            "datatype": layer.dtype,
            "data": (x * x.dtype.type(2)).astype(float).ravel().tolist(),
        }
    ]


def test_what_is_not_finite_passes_in_binary(serving, layers) -> None:
    x = np.array([[np.nan, np.inf, -np.inf, -0.0, 1, 2, 3, 4]], ml_dtypes.bfloat16)
    y = serving.ask(x, layers[1]).as_numpy("output").astype(np.float32)
    assert str(y.tolist()) == "[[nan, inf, -inf, -0.0, 2.0, 4.0, 6.0, 8.0]]"


def test_a_body_in_pieces_of_any_size_is_the_same_body(serving) -> None:
    x = random.standard_normal((64, 8)).astype(np.float32)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "hidden_states",
                    "shape": [64, 8],
                    "datatype": "FP32",
                    "parameters": {"binary_data_size": x.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    body = head + x.tobytes()
    for piece in (1, 7, len(head), 1000, len(body)):
        pieces = (body[start : start + piece] for start in range(0, len(body), piece))
        headers = {"Inference-Header-Content-Length": str(len(head))}
        status, answered, answer = serving.request("POST", "/v2/models/demo/layers.0/infer", pieces, headers)
        length = int(answered["inference-header-content-length"])
        assert (status, answer[length:] == (2 * x).tobytes()) == (200, True)


def test_metadata_and_health(tree, layers) -> None:
    with tree.client() as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert [tree.get(path)[0] for path in ("/livez", "/readyz", "/startupz")] == [200, 503, 503]
        tree.route(tree.worker("a", 1, automatic=True))
        assert client.is_server_ready()
        assert [tree.get(path)[0] for path in ("/livez", "/readyz", "/startupz")] == [200, 200, 200]
        status, body = tree.get("/v2/models")
        assert (status, json.loads(body)) == (200, {"models": [layer.name for layer in layers]})
        assert client.get_server_metadata() == {
            "name": "fdmoe-ops",
            "version": "1.2.3",
            "extensions": ["binary_tensor_data"],
        }
        for layer in layers:
            assert client.is_model_ready(layer.name)
            assert client.get_model_metadata(layer.name) == {
                "name": layer.name,
                "versions": ["1"],
                "platform": "fdmoe",
                "inputs": [{"name": "hidden_states", "datatype": layer.dtype, "shape": [-1, 8]}],
                "outputs": [{"name": "output", "datatype": layer.dtype, "shape": [-1, 8]}],
            }
        assert client.is_model_ready(layers[0].name, "1")
        assert not client.is_model_ready(layers[0].name, "2")
        assert not client.is_model_ready("nobody")


def test_the_handshake(tree) -> None:
    assert (tree.hello.role, tree.hello.name, tree.hello.generation) == ("gateway", "gateway", 0)
    assert (tree.listening.host, tree.listening.port) == ("127.0.0.1", tree.port)
    worker = tree.worker("b", 5, automatic=True)
    tree.route(worker)
    assert (worker.hello.role, worker.hello.name, worker.hello.generation) == ("gateway", "b", 5)
    tree.ask(np.ones((1, 8), np.float32))
    tree.ask(np.ones((1, 8), np.float32))
    assert worker.submitted == 2


def test_what_waits_goes_together_and_a_layer_at_a_time(tree, layers, wait_until) -> None:
    worker = tree.worker("a", 1)
    tree.route(worker)
    rows = [np.full((tokens, 8), tokens, np.float32) for tokens in (1, 2, 3)]
    first = tree.ask_later(rows[0])
    held = worker.next_batch()
    others = []
    for depth, (x, layer) in enumerate([(rows[1], layers[0]), (rows[2].astype(np.float16), layers[2])], 1):
        others.append(tree.ask_later(x, layer))
        wait_until(lambda depth=depth: tree.metric("fdmoe_queue_depth") == depth, "the queue")
    others.append(tree.ask_later(rows[0]))
    wait_until(lambda: tree.metric("fdmoe_queue_depth") == 3, "the queue")
    assert tree.metric("fdmoe_requests_in_flight") == 4
    worker.answer(held)
    other = worker.next_batch()
    assert (other.layer, [segment.tokens for segment in other.segments]) == (layers[2].name, [3])
    worker.answer(other)
    together = worker.next_batch()
    assert (together.layer, [segment.tokens for segment in together.segments]) == (layers[0].name, [2, 1])
    worker.answer(together)
    for request, x in zip([first, *others], [rows[0], rows[1], rows[2], rows[0]], strict=True):
        assert np.array_equal(request.result().as_numpy("output"), 2 * x)
    assert [batch.batch for batch in worker.batches] == [1, 2, 3]
    assert tree.metric("fdmoe_batch_tokens_sum") == 7
    assert tree.metric("fdmoe_requests_in_flight") == 0


def test_metrics(tree) -> None:
    tree.route(tree.worker("a", 1, automatic=True))
    tree.ask(np.ones((3, 8), np.float32))
    tree.ask(np.ones((2, 8), np.float32))
    assert tree.post({}, "nobody")[0] == 404
    assert tree.post({})[0] == 400
    status, body = tree.get("/metrics")
    assert status == 200
    samples = {
        (
            sample.name,
            *(sample.labels[label] for label in ("layer", "path", "code") if label in sample.labels),
        ): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
        if "le" not in sample.labels
    }
    served = ("demo/layers.0", "fused")
    assert samples["fdmoe_request_duration_seconds_count", *served, "200"] == 2
    assert samples["fdmoe_request_duration_seconds_count", "demo/layers.0", "none", "400"] == 1
    assert samples["fdmoe_request_duration_seconds_count", "", "none", "404"] == 1
    assert {key: value for key, value in samples.items() if key[0] == "fdmoe_request_tokens_total"} == {
        ("fdmoe_request_tokens_total", *served): 5
    }
    assert samples["fdmoe_replayed_requests_total",] == 0
    assert samples["fdmoe_queue_depth",] == 0
    assert samples["fdmoe_requests_in_flight",] == 0
    assert (samples["fdmoe_batch_tokens_count",], samples["fdmoe_batch_tokens_sum",]) == (2, 5)
    assert "nobody" not in body.decode()
