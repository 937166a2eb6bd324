"""Requests that are none: broken HTTP and broken Open Inference Protocol, from a seed.

Each of them is whole: whoever reads it has all that will come, and can say no at once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from fdmoe_ops.chaos.target import Target

# what no number, name, shape or list of a request should be
_STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**64, 1e308, "", "x", "\x00", "é" * 200, [], [[]], {}, [1, -8], [1.5], {"inputs": []},
)  # fmt: skip
_LENGTHS = ("", "-1", "+1", "0x10", "1e3", "1_0", "9" * 19, "9" * 5_000, "²")
_LINES = (
    "{} {}", "{} {} HTTP/9.9", "{} {} HTTQ/1.1", " {} {} HTTP/1.1", "{}\t{}\tHTTP/1.1", "{} http://[ {} HTTP/1.1",
)  # fmt: skip
_HEADERS = ("no colon", ": no name", "Na me: x", "X: a\x00b", "Content-Length: 5", "Transfer-Encoding: x")
_CHUNKS = (b"-1\r\n", b"x\r\n", b"fffffffffffffffff\r\n", b"3\r\nabcd\r\n", b"3;a\x00=b\r\nabc\r\n")
_NUMBERS = (b"NaN", b"1e999", b"1,", b"nul")
# none that makes another number of one: whoever answers such a request must answer the known one
_BYTES = bytes(sorted(set(range(256)) - set(b"0123456789.eE+-")))
_NOISE_BYTES = 300
_HEAD_BYTES = 70_000
_DEEP = 100_000


def requests(target: Target, seed: int, count: int) -> Iterator[bytes]:
    """The same ones for the same seed, of each kind in turn."""
    picks = random.Random(seed)
    for number in range(count):
        yield _KINDS[number % len(_KINDS)](target, picks)


def _noise(_: Target, picks: random.Random) -> bytes:
    """Begins as TLS does, at a port that speaks none."""
    return b"\x16\x03" + picks.randbytes(picks.randrange(_NOISE_BYTES)) + b"\r\n\r\n"


def _wrong_line(target: Target, picks: random.Random) -> bytes:
    line = picks.choice(_LINES).format("POST", _path(target))
    return f"{line}\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()


def _wrong_header(target: Target, picks: random.Random) -> bytes:
    return _post(target, b"{}", picks.choice(_HEADERS))


def _large_head(target: Target, picks: random.Random) -> bytes:
    return _post(target, b"{}", "X: " + "a" * (_HEAD_BYTES + picks.randrange(_HEAD_BYTES)))


def _wrong_length(target: Target, picks: random.Random) -> bytes:
    head = f"POST {_path(target)} HTTP/1.1\r\nHost: x\r\nContent-Length: {picks.choice(_LENGTHS)}\r\n\r\n"
    return head.encode("latin-1")


def _wrong_split(target: Target, picks: random.Random) -> bytes:
    """Where the JSON ends and the tensor begins."""
    body = json.dumps(_document(target, binary=True)).encode() + target.known_or_random()[1]
    length = picks.choice((*_LENGTHS, "1", str(len(body)), str(len(body) + 1)))
    return _post(target, body, f"Inference-Header-Content-Length: {length}")


def _wrong_chunks(target: Target, picks: random.Random) -> bytes:
    head = f"POST {_path(target)} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head.encode() + picks.choice(_CHUNKS) + b"0\r\n\r\n"


def _broken_json(target: Target, picks: random.Random) -> bytes:
    text = json.dumps(_document(target, binary=False)).encode()
    match picks.randrange(4):
        case 0:
            return _post(target, text[: picks.randrange(len(text))])
        case 1:
            return _post(target, b"[" * picks.randrange(1, _DEEP))
        case 2:
            head, begin, numbers = text.partition(b'"data": [')
            return _post(target, head + begin + picks.choice(_NUMBERS) + numbers[numbers.index(b",") :])
        case _:
            at = picks.randrange(len(text))
            return _post(target, text[:at] + bytes(picks.choices(_BYTES, k=3)) + text[at:])


def _wrong_value(target: Target, picks: random.Random) -> bytes:
    """One value of a good request is another, or is not there."""
    document = _document(target, binary=False)
    row = document["inputs"][0]
    place = picks.choice((document, row, document["parameters"]))
    name = picks.choice(list(place))
    if picks.random() < 0.2:
        del place[name]
    else:
        place[name] = picks.choice(_STRANGE)
    return _post(target, json.dumps(document).encode())


def _wrong_name(target: Target, picks: random.Random) -> bytes:
    layer = picks.choice(("", "..", "%00", f"{target.layer}0", f"{target.layer}/infer", "é"))
    return _post(replace(target, layer=layer), json.dumps(_document(target, binary=False)).encode())


_KINDS: tuple[Callable[[Target, random.Random], bytes], ...] = (
    _noise, _wrong_line, _wrong_header, _large_head, _wrong_length, _wrong_split, _wrong_chunks, _broken_json,
    _wrong_value, _wrong_name,
)  # fmt: skip


def _document(target: Target, *, binary: bool) -> dict[str, Any]:
    """A good request, to be spoilt: the known one, or else one token."""
    tokens, data = target.known_or_random()
    row: dict[str, object] = {
        "name": "hidden_states", "shape": [tokens, target.hidden_size], "datatype": target.datatype,
    }  # fmt: skip
    if binary:
        row["parameters"] = {"binary_data_size": len(data)}
    else:
        row["data"] = target.unpack(data)
    return {"inputs": [row], "parameters": {"timeout": 30_000_000, "binary_data_output": True}}


def _path(target: Target) -> str:
    return f"/v2/models/{target.layer}/infer"


def _post(target: Target, body: bytes, *lines: str) -> bytes:
    head = [f"POST {_path(target)} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body
