"""The protocol's bytes: what is taken, what is refused in which words, and what is answered."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.gateway import protocol
from fdmoe_ops.gateway.protocol import Parsed, Served
from fdmoe_ops.gateway.refusal import Refusal
from fdmoe_watchdog.messages import LayerInfo

LAYER = LayerInfo("demo/layers.0", 2, "FP32", 8, 2)
TWO_ROWS = {"name": "hidden_states", "shape": [2, 2], "datatype": "FP32", "data": [1, 2.5, -3, 4]}


def tensor(**changes: Any) -> dict[str, Any]:
    merged = {**TWO_ROWS, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def parse(document: object, following: int | None = 0) -> Parsed:
    return protocol.parse(json.dumps(document).encode(), LAYER, 4, following)


@pytest.mark.parametrize("data", [[1, 2.5, -3, 4], [[1, 2.5], [-3, 4]]])
def test_data_may_be_flat_or_rows(data: list[Any]) -> None:
    parsed = parse({"id": "7", "inputs": [tensor(data=data)]})
    assert parsed.data is not None
    assert (parsed.id, parsed.tokens, parsed.size_bytes, parsed.binary_output) == ("7", 2, 16, False)
    assert np.frombuffer(parsed.data, np.float32).tolist() == [1.0, 2.5, -3.0, 4.0]


def test_space_before_rows_does_not_hide_them() -> None:
    body = json.dumps({"inputs": [tensor(data="DATA")]}).replace('"DATA"', "[" + " " * 100 + "\n[1,2],\n[3,4] ]")
    parsed = protocol.parse(body.encode(), LAYER, 4, 0)
    assert parsed.data == np.array([1, 2, 3, 4], np.float32).tobytes()


def test_binary_data_follows() -> None:
    parsed = parse({"inputs": [tensor(data=None, parameters={"binary_data_size": 16})]}, 16)
    assert (parsed.data, parsed.size_bytes, parsed.id) == (None, 16, "")


@pytest.mark.parametrize(
    ("request_parameters", "outputs", "binary"),
    [
        ({}, None, False),
        ({"binary_data_output": True}, None, True),
        ({"binary_data_output": True}, {"binary_data": False}, False),
        ({"binary_data_output": True}, {}, True),
        ({}, {"binary_data": True}, True),
        ({"priority": 1, "mine": "x"}, {}, False),
    ],
)
def test_the_form_of_the_output(
    request_parameters: dict[str, Any], outputs: dict[str, Any] | None, binary: bool
) -> None:
    document: dict[str, Any] = {"inputs": [tensor()], "parameters": request_parameters}
    if outputs is not None:
        document["outputs"] = [{"name": "output", "parameters": outputs}]
    assert parse(document).binary_output is binary


REFUSED: list[tuple[object, int | None, int, str]] = [
    (7, 0, 400, "the request is not an inference request in JSON: Expected `object`, got `int`"),
    ({}, 0, 400, "the request is not an inference request in JSON: Object missing required field `inputs`"),
    ({"inputs": []}, 0, 400, "the inputs are none; exactly one, 'hidden_states', is needed"),
    ({"inputs": [tensor(name="x")]}, 0, 400, "the inputs are 'x'; exactly one, 'hidden_states', is needed"),
    (
        {"inputs": [tensor(), tensor()]},
        0,
        400,
        "the inputs are 'hidden_states', 'hidden_states'; exactly one, 'hidden_states', is needed",
    ),
    ({"id": "x" * 257, "inputs": [tensor()]}, 0, 400, "id has 257 characters; at most 256 are allowed"),
    (
        {"inputs": [tensor(datatype="BF16")]},
        0,
        400,
        "hidden_states has datatype 'BF16'; demo/layers.0 takes 'FP32'",
    ),
    ({"inputs": [tensor(shape=[4])]}, 0, 400, "hidden_states has shape [4]; demo/layers.0 takes [T, 2]"),
    ({"inputs": [tensor(shape=[2, 3])]}, 0, 400, "hidden_states has shape [2, 3]; demo/layers.0 takes [T, 2]"),
    ({"inputs": [tensor(shape=[-1, 2])]}, 0, 400, "hidden_states has shape [-1, 2]; demo/layers.0 takes [T, 2]"),
    ({"inputs": [tensor(shape=[5, 2])]}, 0, 413, "hidden_states has 5 tokens; at most 4 are allowed in a request"),
    (
        {"inputs": [tensor(shape=[1, 2])]},
        0,
        400,
        "hidden_states.data has 4 numbers; shape [1, 2] takes 2",
    ),
    (
        {"inputs": [tensor(data=[[1, 2], [3]])]},
        0,
        400,
        "hidden_states.data has 2 rows of 1 to 2 numbers; shape [2, 2] takes 2 rows of 2",
    ),
    (
        {"inputs": [tensor(data=[1, 2, "3", 4])]},
        0,
        400,
        "hidden_states.data is neither a list of numbers nor a list of such rows: "
        "Expected `float`, got `str` - at `$[2]`",
    ),
    (
        {"inputs": [tensor(data=[1, 2, 3, 1e39])]},
        0,
        400,
        "hidden_states.data: 1e+39 is too large for FP32; at most 3.40282e+38 is allowed",
    ),
    (
        {"inputs": [tensor(data=None)]},
        0,
        400,
        "hidden_states has neither data nor the parameter binary_data_size; one is needed",
    ),
    (
        {"inputs": [tensor(parameters={"binary_data_size": 16})]},
        16,
        400,
        "hidden_states has both data and the parameter binary_data_size; one is allowed",
    ),
    (
        {"inputs": [tensor()]},
        3,
        400,
        "3 bytes follow the JSON, but hidden_states has no parameter binary_data_size",
    ),
    (
        {"inputs": [tensor(data=None, parameters={"binary_data_size": 15})]},
        15,
        400,
        "hidden_states has binary_data_size 15; shape [2, 2] in FP32 takes 16",
    ),
    (
        {"inputs": [tensor(data=None, parameters={"binary_data_size": "16"})]},
        16,
        400,
        "hidden_states has binary_data_size '16'; shape [2, 2] in FP32 takes 16",
    ),
    (
        {"inputs": [tensor(data=None, parameters={"binary_data_size": 16})]},
        12,
        400,
        "12 bytes follow the JSON; binary_data_size says 16",
    ),
    (
        {"inputs": [tensor(data=None, parameters={"shared_memory_region": "r"})]},
        0,
        400,
        "hidden_states is in shared memory; it must come as JSON data or as binary data",
    ),
    (
        {"inputs": [tensor()], "outputs": [{"name": "y"}]},
        0,
        400,
        "the outputs asked for are 'y'; 'output' is the only one",
    ),
    (
        {"inputs": [tensor()], "outputs": [{"name": "output", "parameters": {"classification": 3}}]},
        0,
        400,
        "output has the parameter 'classification'; 'binary_data' is the only one that is supported",
    ),
    (
        {"inputs": [tensor()], "parameters": {"binary_data_output": 1}},
        0,
        400,
        "the parameter binary_data_output is 1; true or false are allowed",
    ),
]


@pytest.mark.parametrize(("document", "following", "status", "text"), REFUSED)
def test_refusals_name_what_was_found_and_what_is_allowed(
    document: object, following: int | None, status: int, text: str
) -> None:
    with pytest.raises(Refusal) as caught:
        parse(document, following)
    assert (caught.value.status, str(caught.value)) == (status, text)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        protocol.parse(body, LAYER, 4, None)
    assert caught.value.status == 400


def test_json_nested_without_end_is_refused() -> None:
    with pytest.raises(Refusal, match="the request is not an inference request in JSON"):
        protocol.parse(b'{"inputs":' + b"[" * 100_000, LAYER, 4, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-9, 9) | st.sampled_from(["hidden_states", "FP32", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*TWO_ROWS, "parameters"]), inner),
    max_leaves=12,
)


@given(st.sampled_from([*TWO_ROWS, "parameters"]), json_values, st.none() | st.integers(0, 20))
def test_any_member_is_taken_whole_or_refused_as_4xx(member: str, value: object, following: int | None) -> None:
    parsed, status = None, 0
    try:
        parsed = parse({"inputs": [{**TWO_ROWS, member: value}]}, following)
    except Refusal as refusal:
        status = refusal.status
    if parsed is None:
        assert status in (400, 413)
        return
    assert parsed.size_bytes == parsed.tokens * 8
    assert parsed.data is not None
    assert len(parsed.data) == parsed.size_bytes


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=8))
def test_every_float_survives_json_both_ways(values: list[float]) -> None:
    values = values[: len(values) // 2 * 2]
    parsed = parse({"inputs": [tensor(shape=[len(values) // 2, 2], data=values)]})
    assert parsed.data is not None
    _, body = protocol.encode(parsed, LAYER, parsed.data, protocol.NOBODY, "9")
    assert json.loads(body)["outputs"][0]["data"] == values


def test_the_answer_in_json_has_null_for_what_json_cannot_say() -> None:
    output = np.array([1.5, np.nan, np.inf, -np.inf], np.float32).tobytes()
    parsed = Parsed("a", 2, 16, None, binary_output=False)
    headers, body = protocol.encode(parsed, LAYER, output, Served("fused", "b", 3, True), "9")
    assert headers == [(b"content-type", b"application/json")]
    assert json.loads(body) == {
        "model_name": "demo/layers.0",
        "model_version": "1",
        "id": "a",
        "parameters": {"fdmoe_path": "fused", "fdmoe_worker": "b", "fdmoe_generation": 3, "fdmoe_replayed": True},
        "outputs": [{"name": "output", "shape": [2, 2], "datatype": "FP32", "data": [1.5, None, None, None]}],
    }


def test_the_answer_in_binary_has_the_bytes_behind_the_json() -> None:
    parsed = Parsed("", 2, 16, None, binary_output=True)
    headers, body = protocol.encode(parsed, LAYER, bytes(range(16)), protocol.NOBODY, "9")
    length = int(dict(headers)[b"inference-header-content-length"])
    assert dict(headers)[b"content-type"] == b"application/octet-stream"
    assert body[length:] == bytes(range(16))
    assert json.loads(body[:length])["id"] == "9"
    assert json.loads(body[:length])["outputs"] == [
        {"name": "output", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}
    ]


def test_a_large_answer_must_be_asked_for_in_binary() -> None:
    layer = LayerInfo("demo/layers.0", 4096, "FP32", 8, 2)

    def ask(tokens: int, *, binary: bool) -> Parsed:
        following = tokens * 4096 * 4
        rows = tensor(shape=[tokens, 4096], data=None, parameters={"binary_data_size": following})
        document = {"inputs": [rows], "outputs": [{"name": "output", "parameters": {"binary_data": binary}}]}
        return protocol.parse(json.dumps(document).encode(), layer, 1000, following)

    assert ask(64, binary=False).tokens == 64
    assert ask(65, binary=True).tokens == 65
    with pytest.raises(
        Refusal, match="output has 266240 numbers; at most 262144 are sent as JSON: ask for binary_data"
    ):
        ask(65, binary=False)
