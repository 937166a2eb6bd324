"""Reading a request's body from ASGI, never more than is allowed."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import Receive, Scope

from fdmoe_ops.gateway.protocol import HEADER_LENGTH
from fdmoe_ops.gateway.refusal import ClientGone, Refusal

# a JSON part that binary data follows holds names, a shape and parameters
MAX_HEADER_BYTES = 64 * 1024
# Numbers in JSON take up to 130 ms per MiB to read, during which nothing else is served; larger tensors go binary.
MAX_JSON_BYTES = 1024 * 1024


class Body:
    """One request's body.

    content_bytes  what Content-Length says; None with chunked transfer
    header_bytes   how much of it is JSON, if binary data follows; None if all of it is JSON
    """

    content_bytes: int | None = None
    header_bytes: int | None = None

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True
        self._read = 0

    def announce(self, scope: Scope, max_tensor_bytes: int) -> None:
        """Before it is read. Raises Refusal (400, 413, 415) for what the headers already give away."""
        content = header = encoding = None
        for name, value in scope["headers"]:
            if name == b"content-length":
                content = value
            elif name == HEADER_LENGTH:
                header = value
            elif name == b"content-encoding":
                encoding = value
        if encoding is not None and encoding.lower() != b"identity":
            raise Refusal(415, f"Content-Encoding is {_shown(encoding)}; bodies are taken as they are ('identity')")
        self.content_bytes = _length("Content-Length", content)
        self.header_bytes = _length("Inference-Header-Content-Length", header)
        if self.header_bytes is None:
            self._limit, self._why = MAX_JSON_BYTES, "as JSON; larger tensors go as binary data"
        else:
            self._limit = MAX_HEADER_BYTES + max_tensor_bytes
            self._why = f"as a header of at most {MAX_HEADER_BYTES} bytes and a tensor of at most {max_tensor_bytes}"
            self._check_header(self.header_bytes)
        self._check_size(self.content_bytes or 0)

    @property
    def complete(self) -> bool:
        """All of it has been read."""
        return not self._more

    @property
    def following_bytes(self) -> int | None:
        """How many bytes come after the JSON part; None if that is not known before they are read."""
        if self.header_bytes is None:
            return 0
        return None if self.content_bytes is None else self.content_bytes - self.header_bytes

    async def json(self) -> tuple[bytes | memoryview, memoryview]:
        """The JSON part, and what of the binary part came with its last piece."""
        if self.header_bytes is None:
            return await self._whole(), memoryview(b"")
        head: bytes | bytearray = await self.next()
        while len(head) < self.header_bytes:
            piece = await self.next()
            if not piece:
                raise Refusal(
                    400,
                    f"the body ends after {len(head)} bytes; Inference-Header-Content-Length is {self.header_bytes}",
                )
            head = bytearray(head)
            head += piece
        view = memoryview(head)
        return view[: self.header_bytes], view[self.header_bytes :]

    async def next(self) -> bytes:
        """The next piece, b"" at the end. Raises ClientGone, and Refusal (413) beyond the limit."""
        while self._more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            self._more = message.get("more_body", False)
            piece: bytes = message.get("body", b"")
            self._read += len(piece)
            self._check_size(self._read)
            if piece:
                return piece
        return b""

    async def discard(self, seconds: float) -> None:
        """Read what is left, for no longer than this, and forget it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._more:
                    message = await self._receive()
                    self._more = message["type"] == "http.request" and message.get("more_body", False)

    async def _whole(self) -> bytes:
        first = await self.next()
        pieces = [first]
        while piece := await self.next():
            pieces.append(piece)
        return first if len(pieces) == 1 else b"".join(pieces)

    def _check_header(self, header_bytes: int) -> None:
        if not 1 <= header_bytes <= MAX_HEADER_BYTES:
            raise Refusal(
                400, f"Inference-Header-Content-Length is {header_bytes}; 1 to {MAX_HEADER_BYTES} are allowed"
            )
        if self.content_bytes is not None and header_bytes > self.content_bytes:
            raise Refusal(
                400, f"Inference-Header-Content-Length is {header_bytes}; the body has {self.content_bytes} bytes"
            )

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._limit:
            raise Refusal(413, f"the body has {size_bytes} bytes or more; at most {self._limit} are taken {self._why}")


def _length(name: str, value: bytes | None) -> int | None:
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise Refusal(400, f"{name} is {_shown(value)}; a number of bytes is needed")
    return int(value)


def _shown(value: bytes) -> str:
    return repr(value[:64].decode("latin-1"))
