"""The malformed requests of a game day, at a real gateway: each is refused in words, and nothing is left of any."""

from __future__ import annotations

import raw_http

from fdmoe_ops.chaos import door
from fdmoe_ops.chaos.malformed import requests
from fdmoe_ops.chaos.target import Target

TARGET = Target("demo/layers.0", "FP32", 8)


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
