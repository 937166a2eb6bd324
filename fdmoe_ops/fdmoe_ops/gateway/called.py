"""What a request is called: in its answer's header, in log lines, with its batch, in flight records and exemplars.

X-Request-Id   the client's or a proxy's name for it, if it is 1 to 128 characters of visible ASCII
id             of the inference request's JSON where there is no such header, what is not visible ASCII percent-encoded
a new one      else: twelve hexadecimal digits that this process drew when it started, and a number
traceparent    the trace that it is part of: https://www.w3.org/TR/trace-context/#traceparent-header

What does not fit these rules is ignored and never refused: a name is a help for people and not part of the work.
"""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import dataclass
from urllib.parse import quote

HEADER = b"x-request-id"
TRACEPARENT = b"traceparent"
MAX_CHARACTERS = 128
_sane = re.compile(rb"[!-~]{1,%d}" % MAX_CHARACTERS).fullmatch
# a later version may append fields; version 00 has none
_traceparent = re.compile(
    rb"(?!ff|00.{53}-)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?", re.DOTALL
).fullmatch
# all of visible ASCII but the percent sign, which would be read as an encoding
_UNTOUCHED = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) != "%")
_PROCESS = os.urandom(6).hex()
_numbers = itertools.count(1)


@dataclass(slots=True)
class Called:
    """One request's names.

    id        its own
    given     the header said so, which counts more than the body
    trace_id  32 hexadecimal digits, or "" where it is part of no trace
    sampled   whoever began the trace records it; None: nobody has begun one
    """

    id: str
    given: bool
    trace_id: str = ""
    sampled: bool | None = None

    def also(self, own_id: str) -> None:
        """What the request's body calls it, "" if nothing."""
        if own_id and not self.given:
            name = quote(own_id, safe=_UNTOUCHED)
            if len(name) <= MAX_CHARACTERS:
                self.id = name


def new_id() -> str:
    return f"{_PROCESS}-{next(_numbers):x}"


def from_headers(headers: list[tuple[bytes, bytes]]) -> Called:
    """Of several headers of one name the last that is good counts."""
    called = None
    trace = None
    for name, value in headers:
        if name == HEADER:
            if _sane(value):
                called = Called(value.decode("ascii"), True)
        elif name == TRACEPARENT:
            trace = _traceparent(value)
    if called is None:
        called = Called(new_id(), False)
    if trace is not None:
        called.trace_id, called.sampled = trace[1].decode("ascii"), bool(int(trace[2], 16) & 1)
    return called
