"""Bytes that no client means, at a real gateway process: an error in JSON or the connection's end, and nothing else.

Every example is followed by a good request, and in the end nothing may be left of any of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
import raw_http
from hypothesis import given, settings
from hypothesis import strategies as st

INFER = "POST /v2/models/demo/layers.0/infer HTTP/1.1"
ROW = {"name": "hidden_states", "shape": [1, 8], "datatype": "FP32"}
BINARY = raw_http.infer(3)
IN_JSON = raw_http.post(json.dumps({"id": "x", "inputs": [{**ROW, "data": [0.5] * 8}]}).encode())
GET = b"GET /v2/models/demo/layers.0 HTTP/1.1\r\nHost: x\r\nAccept: text/plain; version=0.0.4\r\n\r\n"
CHUNKED = f"{INFER}\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()

examples = settings(max_examples=100, deadline=None)


@pytest.fixture(scope="module")
def gateway(running_process) -> Iterator[object]:
    """Who sends half a request has 50 ms for the other half; each test ends with a look at what is left."""
    with running_process(upload_timeout_s=0.05) as process:
        process.route(process.worker("a", 1, automatic=True))
        yield process
        assert process.process.poll() is None, "it lives"
        said = process.end()
        assert "Traceback" not in said, said
        assert "request_failed" not in said, said


@pytest.fixture(autouse=True)
def _nothing_is_left(gateway, wait_until) -> Iterator[None]:
    yield
    wait_until(lambda: gateway.scraped("fdmoe_requests_in_flight") == 0, "no request is in flight")
    wait_until(lambda: gateway.scraped("fdmoe_arena_used_bytes") == 0, "the arena is whole")
    assert gateway.scraped("fdmoe_queue_depth") == 0


def hit(gateway, data: bytes) -> raw_http.Answer | None:
    """Send it. The first answer, if there is one, is a refusal in JSON or was deserved; then a good request is served.

    A connection that hangs is a TimeoutError.
    """
    with raw_http.connect(gateway.port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        answer = raw_http.receive(connection)
    if answer is not None and answer.status != 200:
        assert answer.status in (*range(400, 500), 504), answer  # 504: it may have asked for so little time
        assert answer.headers["content-type"] == "application/json"
        assert answer.error
    assert raw_http.is_right(raw_http.exchange(gateway.port, raw_http.infer(2)), 2)
    return answer


@examples
@given(st.binary(min_size=1, max_size=300))
def test_random_bytes(gateway, data: bytes) -> None:
    answer = hit(gateway, data)
    assert answer is None or answer.status in (400, 408)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good request with a few bytes changed, inserted, removed or said twice, or without its end."""
    data = bytearray(draw(st.sampled_from([BINARY, IN_JSON, GET])))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(data) - 1, 0)))
        end = min(len(data), start + draw(st.integers(0, 20)))
        new = draw(st.binary(max_size=8) | st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"\x00", b"[", b'"', b"-1"]))
        match draw(st.sampled_from(["change", "insert", "repeat", "cut"])):
            case "change":
                data[start:end] = new
            case "insert":
                data[start:start] = new
            case "repeat":
                data[end:end] = data[start:end]
            case "cut":
                del data[start:]
    return bytes(data) or b"\r\n"


@examples
@given(mutated())
def test_good_requests_with_something_wrong(gateway, data: bytes) -> None:
    hit(gateway, data)


lengths = st.one_of(
    st.integers(-5, 5_000), st.sampled_from(["", "+1", "0x10", "1e3", "1_0", " 7", "9" * 19, "9" * 5_000, "\xb2"])
)


@examples
@given(st.dictionaries(st.sampled_from(["Content-Length", "Inference-Header-Content-Length"]), lengths), st.booleans())
def test_wrong_lengths(gateway, found: dict[str, object], also_chunked: bool) -> None:
    lines = [INFER, "Host: x", *(f"{name}: {value}" for name, value in found.items())]
    if also_chunked:
        lines.append("Transfer-Encoding: chunked")
    _, _, body = BINARY.partition(b"\r\n\r\n")
    hit(gateway, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


chunk_sizes = st.sampled_from(["1", "A", "0", "fffffffffffffffff", "-1", "x", "5;a=b"])


@examples
@given(st.lists(st.tuples(chunk_sizes, st.binary(max_size=12))))
def test_chunks_of_any_kind(gateway, chunks: list[tuple[str, bytes]]) -> None:
    hit(gateway, CHUNKED + b"".join(b"%s\r\n%s\r\n" % (size.encode(), data) for size, data in chunks))


header_text = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40)


@examples
@given(st.lists(st.tuples(header_text, header_text | st.sampled_from([50_000, 70_000]).map("a".__mul__)), max_size=5))
def test_headers_of_any_kind(gateway, headers: list[tuple[str, str]]) -> None:
    head = "\r\n".join([INFER, "Host: x", *(f"{name}: {value}" for name, value in headers), "", ""])
    hit(gateway, head.encode("latin-1"))


class Pairs(list):
    """An object of JSON that may have a key twice."""


def written(value: object) -> str:
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


NAMES = ["inputs", "outputs", "id", "parameters", "name", "shape", "datatype", "data", "binary_data_size", "timeout"]
atoms = st.one_of(
    st.sampled_from([
        "NaN", "Infinity", "-Infinity", "1e999", "-0", "01", "1.", "true", "nul", '"\\ud800"', '"\\u0000"', "'x'", "",
        "9" * 30, "9" * 5_000, "18446744073709551616", '"hidden_states"', '"FP32"', "[1, 8]", "[-1, 8]",
        "[99999999999, 8]", "[1.5, 8]", '"' + "x" * 300 + '"',
    ]),
    st.integers(-10, 10),
    st.text(max_size=5).map(json.dumps),
)  # fmt: skip
pairs = st.lists(st.tuples(st.sampled_from(NAMES), atoms), max_size=3).map(Pairs)
anything = st.recursive(atoms | pairs, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """A good request in which one value is another or one key is there twice."""
    numbers: list[object] = [0.5] * 8
    row = Pairs([("name", '"hidden_states"'), ("shape", "[1, 8]"), ("datatype", '"FP32"'), ("data", numbers)])
    document = Pairs([("id", '"x"'), ("parameters", Pairs([("timeout", 5_000_000)])), ("inputs", [row])])
    place: list = draw(st.sampled_from([document, row, document[1][1], numbers]))
    other = draw(anything)
    index = draw(st.integers(0, len(place) - 1))
    if place is numbers:
        place[index] = other
    elif draw(st.booleans()):
        place[index] = (place[index][0], other)
    else:
        place.append((draw(st.sampled_from(NAMES)), other))
    return written(document).encode("utf-8", "surrogatepass")


@settings(examples, max_examples=200)
@given(documents())
def test_json_of_any_kind(gateway, document: bytes) -> None:
    hit(gateway, raw_http.post(document))


@pytest.mark.parametrize("depth", [100, 5_000, 500_000])
@pytest.mark.parametrize(
    "form",
    ["%s", '{"id": %s}', '{"inputs": [{"name": "hidden_states", "shape": [1, 8], "datatype": "FP32", "data": %s}]}'],
    ids=["document", "id", "data"],
)
def test_deep_json(gateway, depth: int, form: str) -> None:
    answer = hit(gateway, raw_http.post((form % ("[" * depth + "]" * depth)).encode()))
    assert answer is not None
    assert answer.status == 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_does_not_have(gateway, number: str) -> None:
    row = json.dumps({**ROW, "data": [0.5] * 8}).replace("0.5", number, 1)
    answer = hit(gateway, raw_http.post(f'{{"inputs": [{row}]}}'.encode()))
    assert answer is not None
    assert answer.status == 400


def test_of_a_key_that_is_there_twice_the_last_counts(gateway) -> None:
    row = json.dumps({**ROW, "data": [0.5] * 8})
    good = hit(gateway, raw_http.post(f'{{"id": "a", "inputs": [], "id": "b", "inputs": [{row}]}}'.encode()))
    assert good is not None
    assert (good.status, json.loads(good.body)["id"]) == (200, "b")
    bad = hit(gateway, raw_http.post(f'{{"inputs": [{row}], "inputs": []}}'.encode()))
    assert bad is not None
    assert (bad.status, bad.error) == (400, "the inputs are none; exactly one, 'hidden_states', is needed")
