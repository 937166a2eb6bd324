"""What a request is called: its names from headers and body, as a table, and that no name can do harm."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_ops.gateway import called
from fdmoe_ops.gateway.called import Called
from fdmoe_ops.gateway.metrics import exemplar

MADE = re.compile("[0-9a-f]{12}-[0-9a-f]+")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def name_of(request_id: str | bytes | None = None, own_id: str = "", traceparent: str | None = None) -> Called:
    headers = [(b"host", b"here")]
    if request_id is not None:
        headers.append((b"x-request-id", request_id if isinstance(request_id, bytes) else request_id.encode()))
    if traceparent is not None:
        headers.append((b"traceparent", traceparent.encode("latin-1")))
    name = called.from_headers(headers)
    name.also(own_id)
    return name


@pytest.mark.parametrize(
    ("request_id", "own_id", "expected"),
    [
        ("a-7", "", "a-7"),
        ("a-7", "b", "a-7"),
        (None, "b", "b"),
        ("!~" * 64, "", "!~" * 64),
        (None, "a b-7", "a%20b-7"),
        (None, "a\r\nb: c", "a%0D%0Ab:%20c"),
        (None, "ä", "%C3%A4"),
        (None, "50%", "50%25"),
        (None, "x" * 128, "x" * 128),
    ],
)
def test_the_header_counts_then_the_body(request_id: str | None, own_id: str, expected: str) -> None:
    assert name_of(request_id, own_id).id == expected


@pytest.mark.parametrize(
    ("request_id", "own_id"),
    [
        (None, ""), ("", ""), ("x" * 129, ""), ("a b", ""), ("a\tb", ""), (b"\xe4", ""), (b"a\x00", ""), (b"a\x7f", ""),
        (None, "x" * 129), (None, "ä" * 22),
    ],
)  # fmt: skip
def test_a_name_is_made_where_there_is_no_good_one(request_id: str | bytes | None, own_id: str) -> None:
    first, second = name_of(request_id, own_id).id, name_of(request_id, own_id).id
    assert MADE.fullmatch(first)
    assert MADE.fullmatch(second)
    assert first != second


def test_a_bad_header_leaves_the_word_to_the_body() -> None:
    assert name_of("a b", "c").id == "c"


@pytest.mark.parametrize(
    ("traceparent", "expected"),
    [
        (f"00-{TRACE}-{SPAN}-01", (TRACE, True)),
        (f"00-{TRACE}-{SPAN}-00", (TRACE, False)),
        (f"00-{TRACE}-{SPAN}-fe", (TRACE, False)),
        (f"cc-{TRACE}-{SPAN}-01-what-will-be", (TRACE, True)),
        (f"cc-{TRACE}-{SPAN}-01", (TRACE, True)),
        (f"00-{TRACE}-{SPAN}-01-no", ("", None)),
        (f"cc-{TRACE}-{SPAN}-01no", ("", None)),
        (f"ff-{TRACE}-{SPAN}-01", ("", None)),
        (f"00-{'0' * 32}-{SPAN}-01", ("", None)),
        (f"00-{TRACE}-{'0' * 16}-01", ("", None)),
        (f"00-{TRACE.upper()}-{SPAN}-01", ("", None)),
        (f"00-{TRACE[1:]}-{SPAN}-01", ("", None)),
        (f"00-{TRACE}-{SPAN}", ("", None)),
        ("", ("", None)),
        (None, ("", None)),
    ],
)
def test_the_trace_that_it_is_part_of(traceparent: str | None, expected: tuple[str, bool | None]) -> None:
    name = name_of("a", traceparent=traceparent)
    assert (name.trace_id, name.sampled) == expected
    assert name.id == "a"


@given(st.binary(max_size=200), st.text(max_size=200), st.binary(max_size=70))
def test_whatever_comes_its_names_are_sane(request_id: bytes, own_id: str, traceparent: bytes) -> None:
    name = called.from_headers([(b"x-request-id", request_id), (b"traceparent", traceparent)])
    name.also(own_id)
    assert re.fullmatch("[!-~]{1,128}", name.id)
    assert re.fullmatch("|[0-9a-f]{32}", name.trace_id)


@pytest.mark.parametrize("length", [1, 78, 79, 118, 119, 128])
@pytest.mark.parametrize("trace_id", ["", TRACE])
def test_an_exemplars_labels_have_128_characters_at_most(length: int, trace_id: str) -> None:
    labels = exemplar(Called("x" * length, True, trace_id))
    assert sum(len(key) + len(value) for key, value in labels.items()) <= 128
    assert labels.get("trace_id", "") == trace_id
    kept = min(length, 78 if trace_id else 118)
    assert labels["request_id"] == "x" * kept


def test_an_exemplar_has_nothing_that_a_parser_may_not_know() -> None:
    assert exemplar(Called('a"b\\c', True, "")) == {"request_id": "abc"}
