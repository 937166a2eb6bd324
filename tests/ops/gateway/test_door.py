"""The game day's clients at the door, against a real gateway: what they count is what the page of faults promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fdmoe_ops.chaos import door
from fdmoe_ops.chaos.load import Pool

POOL = Pool("demo/layers.0", "FP32", 8, (bytes(4 * 8 * 4),), (torch.zeros(4, 8),))


def test_slow_clients_are_told_408(running_tree: Callable[..., Any], wait_until) -> None:
    with running_tree(upload_timeout_s=0.3) as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        assert door.slow_clients(("127.0.0.1", tree.port), POOL, count=5) == {"408": 5}
        wait_until(lambda: tree.metric("fdmoe_arena_used_bytes") == 0, "the arena is whole")
        labels = {"layer": "demo/layers.0", "path": "none", "code": "408"}
        assert tree.metric("fdmoe_request_duration_seconds_count", **labels) == 5


def test_slow_clients_that_nobody_cuts_off(running_tree: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_SLOW_S", 0.3)
    with running_tree() as tree:
        tree.route(tree.worker("a", 1, automatic=True))
        assert door.slow_clients(("127.0.0.1", tree.port), POOL, count=3) == {"never cut off": 3}
