"""The Open Inference Protocol v2, with the binary tensor data extension, as bytes in and bytes out; no I/O.

https://github.com/kserve/open-inference-protocol
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md

A layer is a model with one input `hidden_states` [T, H] and one output `output` [T, H], both of the layer's datatype.
A request's body is JSON, followed by the input's bytes where the header Inference-Header-Content-Length says how long
the JSON is. The answer has the same form, binary where the request asks for it.

Of a key that a JSON object has twice the last one counts.

JSON has no word for NaN and infinities: they come in binary only, and go out as null where an answer is JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from fdmoe_ops.gateway import deadline
from fdmoe_ops.gateway.refusal import Refusal
from fdmoe_ops.gateway.tensors import DTYPES, from_numbers, to_numbers
from fdmoe_watchdog.messages import LayerInfo

INPUT = "hidden_states"
OUTPUT = "output"
VERSION = "1"
HEADER_LENGTH = b"inference-header-content-length"
MAX_ID_CHARACTERS = 256
# to write that many numbers as JSON takes 20 to 40 ms, during which nothing else is served
MAX_JSON_NUMBERS = 256 * 1024
_ROWS = re.compile(rb"\s*\[\s*\[")
_ABSENT = msgspec.Raw()
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = _ABSENT


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


_requests = msgspec.json.Decoder(_Request)
_flat = msgspec.json.Decoder(list[float])
_nested = msgspec.json.Decoder(list[list[float]])


@dataclass(frozen=True, slots=True)
class Parsed:
    """A request's JSON part, checked against its layer.

    id            what the request calls itself; "" if it does not
    size_bytes    of the input, and of the output
    data          the input's bytes if they were JSON; None if they follow the JSON part
    timeout_s     how long it may take in all; None if it does not say
    """

    id: str
    tokens: int
    size_bytes: int
    data: bytes | None
    binary_output: bool
    timeout_s: float | None = None


@dataclass(frozen=True, slots=True)
class Served:
    """Who computed an answer; `path` is "none" where nothing had to be computed."""

    path: str
    worker: str
    generation: int
    replayed: bool


NOBODY = Served("none", "", 0, False)


def element_bytes(layer: LayerInfo) -> int:
    return DTYPES[layer.dtype].itemsize


def row_bytes(layer: LayerInfo) -> int:
    return layer.hidden_size * element_bytes(layer)


def parse(header: bytes | bytearray | memoryview, layer: LayerInfo, token_limit: int, following: int | None) -> Parsed:
    """The JSON part `header`, which `following` bytes come after (None: not known yet).

    Raises Refusal: 400 for what does not fit the layer, 413 for more than `token_limit` tokens.
    """
    try:
        request = _requests.decode(header)
    except _MALFORMED as error:
        raise Refusal(400, f"the request is not an inference request in JSON: {error}") from error
    if len(request.id) > MAX_ID_CHARACTERS:
        raise Refusal(400, f"id has {len(request.id)} characters; at most {MAX_ID_CHARACTERS} are allowed")
    if len(request.inputs) != 1 or request.inputs[0].name != INPUT:
        names = ", ".join(repr(tensor.name) for tensor in request.inputs) or "none"
        raise Refusal(400, f"the inputs are {names}; exactly one, {INPUT!r}, is needed")
    tensor = request.inputs[0]
    if tensor.datatype != layer.dtype:
        raise Refusal(400, f"{INPUT} has datatype {tensor.datatype!r}; {layer.name} takes {layer.dtype!r}")
    timeout_s = deadline.from_parameters(request.parameters)
    tokens = _tokens(tensor, layer, token_limit)
    binary_output = _binary_output(request)
    if not binary_output and tokens * layer.hidden_size > MAX_JSON_NUMBERS:
        raise Refusal(
            400,
            f"{OUTPUT} has {tokens * layer.hidden_size} numbers; at most {MAX_JSON_NUMBERS} are sent as JSON: "
            "ask for binary_data",
        )
    size_bytes = tokens * row_bytes(layer)
    data = _input_data(tensor, layer, size_bytes, following)
    return Parsed(request.id, tokens, size_bytes, data, binary_output, timeout_s)


def _tokens(tensor: _Input, layer: LayerInfo, token_limit: int) -> int:
    if len(tensor.shape) != 2 or tensor.shape[0] < 0 or tensor.shape[1] != layer.hidden_size:
        raise Refusal(400, f"{INPUT} has shape {tensor.shape}; {layer.name} takes [T, {layer.hidden_size}]")
    if tensor.shape[0] > token_limit:
        raise Refusal(413, f"{INPUT} has {tensor.shape[0]} tokens; at most {token_limit} are allowed in a request")
    return tensor.shape[0]


def _input_data(tensor: _Input, layer: LayerInfo, size_bytes: int, following: int | None) -> bytes | None:
    """The tensor's bytes if they came as JSON, None if they follow. Exactly one of the two must be there."""
    if "shared_memory_region" in tensor.parameters:
        raise Refusal(400, f"{INPUT} is in shared memory; it must come as JSON data or as binary data")
    announced = tensor.parameters.get("binary_data_size")
    if announced is None:
        if not tensor.data:
            raise Refusal(400, f"{INPUT} has neither data nor the parameter binary_data_size; one is needed")
        if following:
            raise Refusal(400, f"{following} bytes follow the JSON, but {INPUT} has no parameter binary_data_size")
        return _json_data(tensor.data, tensor.shape, layer)
    if tensor.data:
        raise Refusal(400, f"{INPUT} has both data and the parameter binary_data_size; one is allowed")
    if announced != size_bytes or isinstance(announced, bool):
        raise Refusal(
            400,
            f"{INPUT} has binary_data_size {announced!r}; shape {tensor.shape} in {layer.dtype} takes {size_bytes}",
        )
    if following is not None and following != size_bytes:
        raise Refusal(400, f"{following} bytes follow the JSON; binary_data_size says {size_bytes}")
    return None


def _json_data(raw: msgspec.Raw, shape: list[int], layer: LayerInfo) -> bytes:
    """Flat, or a list of rows."""
    tokens, hidden = shape
    try:
        if _ROWS.match(memoryview(raw)):
            rows = _nested.decode(raw)
            if len(rows) != tokens or any(len(row) != hidden for row in rows):
                found = f"{len(rows)} rows of {_range([len(row) for row in rows])} numbers"
                raise Refusal(400, f"{INPUT}.data has {found}; shape {shape} takes {tokens} rows of {hidden}")
            values = [value for row in rows for value in row]
        else:
            values = _flat.decode(raw)
            if len(values) != tokens * hidden:
                raise Refusal(400, f"{INPUT}.data has {len(values)} numbers; shape {shape} takes {tokens * hidden}")
        return from_numbers(values, layer.dtype)
    except _MALFORMED as error:
        raise Refusal(400, f"{INPUT}.data is neither a list of numbers nor a list of such rows: {error}") from error
    except ValueError as error:
        raise Refusal(400, f"{INPUT}.data: {error}") from error


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _binary_output(request: _Request) -> bool:
    """An output's own binary_data counts; without it, the request's binary_data_output; without that, JSON."""
    for_all = _flag(request.parameters, "binary_data_output", False)
    if not request.outputs:
        return for_all
    if len(request.outputs) != 1 or request.outputs[0].name != OUTPUT:
        names = ", ".join(repr(output.name) for output in request.outputs)
        raise Refusal(400, f"the outputs asked for are {names}; {OUTPUT!r} is the only one")
    parameters = request.outputs[0].parameters
    for name in ("classification", "shared_memory_region"):
        if name in parameters:
            raise Refusal(400, f"{OUTPUT} has the parameter {name!r}; 'binary_data' is the only one that is supported")
    return _flag(parameters, "binary_data", for_all)


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise Refusal(400, f"the parameter {name} is {value!r}; true or false are allowed")
    return value


def encode(
    parsed: Parsed, layer: LayerInfo, output: memoryview | bytes, served: Served, request_id: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body of the answer; `output` is the output's bytes, which are copied once. The body says the id that
    the request's body had, where it had one."""
    tensor: dict[str, Any] = {"name": OUTPUT, "shape": [parsed.tokens, layer.hidden_size], "datatype": layer.dtype}
    if parsed.binary_output:
        tensor["parameters"] = {"binary_data_size": parsed.size_bytes}
    else:
        tensor["data"] = to_numbers(output, layer.dtype)
    document = {
        "model_name": layer.name,
        "model_version": VERSION,
        "id": parsed.id or request_id,
        "parameters": {
            "fdmoe_path": served.path,
            "fdmoe_worker": served.worker,
            "fdmoe_generation": served.generation,
            "fdmoe_replayed": served.replayed,
        },
        "outputs": [tensor],
    }
    body = msgspec.json.encode(document)
    if not parsed.binary_output:
        return [(b"content-type", b"application/json")], body
    headers = [(b"content-type", b"application/octet-stream"), (HEADER_LENGTH, b"%d" % len(body))]
    return headers, b"".join((body, output))


def server_metadata(version: str) -> dict[str, Any]:
    return {"name": "fdmoe-ops", "version": version, "extensions": ["binary_tensor_data"]}


def model_metadata(layer: LayerInfo) -> dict[str, Any]:
    tensor = {"datatype": layer.dtype, "shape": [-1, layer.hidden_size]}
    return {
        "name": layer.name,
        "versions": [VERSION],
        "platform": "fdmoe",
        "inputs": [{"name": INPUT, **tensor}],
        "outputs": [{"name": OUTPUT, **tensor}],
    }
