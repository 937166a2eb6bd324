"""A served layer as its clients see it: its name, and what a request to it is like.

Without torch and numpy: `fdmoe chaos` sends requests, too, and wants no right answers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import struct
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Address = tuple[str, int]

_ANSWER_S = 10.0


class NoTarget(ConnectionError):
    """No gateway answers at the address, or it serves no layer now; the text says which."""


@dataclass(frozen=True)
class Known:
    """A request whose right answer is known: its tokens, their bytes, and whether an output is wrong."""

    tokens: int
    data: bytes
    is_wrong: Callable[[bytes], bool]


@dataclass(frozen=True)
class Target:
    """`layer` is its name in requests; `datatype` and `hidden_size` are those of its one input; `known` is for clients
    that judge what they are answered."""

    layer: str
    datatype: str
    hidden_size: int
    known: Known | None = None

    @classmethod
    def of_gateway(cls, address: Address) -> Target:
        """The first layer that the gateway serves. Raises NoTarget."""
        try:
            with contextlib.closing(http.client.HTTPConnection(*address, timeout=_ANSWER_S)) as connection:
                layer = _get(connection, "/v2/models")["models"][0]
                (tensor,) = _get(connection, f"/v2/models/{urllib.parse.quote(layer)}")["inputs"]
            return cls(layer, tensor["datatype"], tensor["shape"][1])
        except (OSError, http.client.HTTPException) as error:
            raise NoTarget(f"the gateway names no layer: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise NoTarget(f"what answers there is no gateway of ours: {type(error).__name__}: {error}") from error

    def request(self, tokens: int, data: bytes) -> tuple[bytes, dict[str, str]]:
        """Body and headers: a JSON header, then the tensor's bytes."""
        tensor = {
            "name": "hidden_states", "datatype": self.datatype, "shape": [tokens, self.hidden_size],
            "parameters": {"binary_data_size": len(data)},
        }  # fmt: skip
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
        return head + data, headers

    def raw(self, seed: int) -> bytes:
        """A whole HTTP request of one token, random from the seed."""
        return self.whole(1, self._token(random.Random(seed)))

    def whole(self, tokens: int, data: bytes) -> bytes:
        """A whole HTTP request."""
        body, headers = self.request(tokens, data)
        lines = [
            f"POST /v2/models/{urllib.parse.quote(self.layer)}/infer HTTP/1.1",
            "Host: door",
            f"Content-Length: {len(body)}",
        ]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def known_or_random(self) -> tuple[int, bytes]:
        """Tokens and their bytes: the known request, or one token, always the same."""
        return (1, self._token(random.Random(0))) if self.known is None else (self.known.tokens, self.known.data)

    def _token(self, picks: random.Random) -> bytes:
        return self.pack([picks.gauss(0, 1) for _ in range(self.hidden_size)])

    def pack(self, values: Sequence[float]) -> bytes:
        """As they are in a tensor of this datatype; for BF16 the lower half of a float32 is cut off, not rounded.

        Raises struct.error for what is no number, OverflowError for one that is too large.
        """
        if self.datatype == "BF16":
            return b"".join(struct.pack("<f", value)[2:] for value in values)
        return struct.pack(f"<{len(values)}{self._format}", *values)

    def unpack(self, data: bytes) -> list[float]:
        if self.datatype == "BF16":
            halves = (data[place : place + 2] for place in range(0, len(data), 2))
            data = b"".join(b"\0\0" + half for half in halves)
        return [value for (value,) in struct.iter_unpack(f"<{self._format}", data)]

    @property
    def _format(self) -> str:
        """The letter that module struct has for it."""
        match self.datatype:
            case "FP32" | "BF16":
                return "f"
            case "FP16":
                return "e"
        raise ValueError(f"datatype is {self.datatype!r}; FP32, BF16 and FP16 are served")


def _get(connection: http.client.HTTPConnection, path: str) -> dict[str, Any]:
    """The JSON document there. Raises NoTarget with the gateway's words for any other answer."""
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise NoTarget(f"{answer.status} {body[:200].decode(errors='replace')}")
    document: dict[str, Any] = json.loads(body)
    return document
