"""The malformed requests of a game day, at a real gateway: each is refused in words, and nothing is left of any."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import raw_http

from fdmoe_ops.chaos import door, malformed
from fdmoe_ops.chaos.malformed import requests
from fdmoe_ops.chaos.target import Known, Target

TARGET = Target("demo/layers.0", "FP32", 8)
NUMBERS = [index / 4 for index in range(16)]


def _knowing(factor: float) -> Target:
    """Two tokens, and that a worker multiplies them by `factor`."""
    right = TARGET.pack([factor * number for number in NUMBERS])
    return replace(TARGET, known=Known(2, TARGET.pack(NUMBERS), lambda output: output != right))


def _good_but_without(name: str) -> bytes:
    """A good request that leaves out one of its parameters."""
    row = {"name": "hidden_states", "shape": [2, 8], "datatype": "FP32", "data": NUMBERS}
    parameters = {"timeout": 30_000_000, "binary_data_output": True}
    del parameters[name]
    return raw_http.post(json.dumps({"inputs": [row], "parameters": parameters}).encode())


def test_a_seed_gives_the_same_requests_again_and_another_one_others() -> None:
    first, again, other = (list(requests(TARGET, seed, 40)) for seed in (1, 1, 2))
    assert first == again
    assert sum(one != two for one, two in zip(first, other, strict=True)) > 20


def test_each_is_refused_or_was_none_after_all(serving, wait_until) -> None:
    found = door.nonsense(("127.0.0.1", serving.port), TARGET)
    assert set(found) <= {"refused", "cut off", "200"}, found
    assert sum(found.values()) == 500
    assert found["refused"] > 450
    wait_until(lambda: serving.metric("fdmoe_requests_in_flight") == 0, "no request is in flight")
    wait_until(lambda: serving.metric("fdmoe_arena_used_bytes") == 0, "the arena is whole")
    assert raw_http.is_right(raw_http.exchange(serving.port, raw_http.infer(2)), 2)


def test_what_is_answered_all_the_same_is_compared_with_the_known_answer(serving) -> None:
    """The worker doubles."""
    address = ("127.0.0.1", serving.port)
    right, wrong = (door.nonsense(address, _knowing(factor)) for factor in (2, 3))
    assert "wrong" not in right
    assert "200" not in wrong
    assert wrong["wrong"] == right["200"] > 0


@pytest.mark.parametrize("name", ["timeout", "binary_data_output"])
@pytest.mark.parametrize(("factor", "ended"), [(2, "200"), (3, "wrong")])
def test_an_answer_is_compared_in_binary_and_in_json(
    serving, monkeypatch: pytest.MonkeyPatch, name: str, factor: float, ended: str
) -> None:
    monkeypatch.setattr(malformed, "requests", lambda *_, **__: [_good_but_without(name)])
    assert door.nonsense(("127.0.0.1", serving.port), _knowing(factor)) == {ended: 1}


@pytest.mark.parametrize(
    "raw", [raw_http.infer(2), _good_but_without("timeout").replace(b"0.25", b"0.75")], ids=["no JSON", "other numbers"]
)
def test_a_200_that_nobody_can_judge_is_no_fair_one(serving, monkeypatch: pytest.MonkeyPatch, raw: bytes) -> None:
    monkeypatch.setattr(malformed, "requests", lambda *_, **__: [raw])
    assert door.nonsense(("127.0.0.1", serving.port), _knowing(2)) == {"200 to nonsense": 1}


def test_no_request_has_other_numbers_that_are_good() -> None:
    """Its answer would be a right one, and be called wrong."""
    compared = 0
    for raw in requests(_knowing(2), 3, 20_000):
        try:
            document = json.loads(raw.partition(b"\r\n\r\n")[2], parse_constant=lambda _: math.inf)
            numbers = document["inputs"][0]["data"]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue
        if isinstance(numbers, list) and len(numbers) == len(NUMBERS):
            compared += 1
            others = [number for number, known in zip(numbers, NUMBERS, strict=True) if number != known]
            assert others in ([], [math.inf]), raw
    assert compared > 1_000
