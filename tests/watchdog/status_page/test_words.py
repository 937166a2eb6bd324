"""Events in plain sentences."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import status_views

import fdmoe_watchdog
from fdmoe_watchdog.status import Event
from fdmoe_watchdog.status_page import words


def _added_events() -> set[str]:
    """The first arguments of all `events.add("...")` of the watchdog."""
    names: set[str] = set()
    for source in Path(fdmoe_watchdog.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "add":
                continue
            if ast.unparse(node.func.value).rpartition(".")[2].lstrip("_") != "events" or not node.args:
                continue
            # one of two names by a condition is both
            names |= {
                part.value
                for part in ast.walk(node.args[0])
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            }
    return names


def test_every_event_of_the_watchdog_has_words_and_no_other_has() -> None:
    assert _added_events() == set(words.NAMES)


@pytest.mark.parametrize(
    ("event", "tone", "sentence"),
    [
        (
            status_views.STALL,
            "bad",
            "Worker a stalled: CTA 0 waits in down, expert 3, tile (0, 0), for 1 of 2 up tiles, and no CTA holds the "
            "missing tile: its completion was lost; launch 7 of demo/layers.1 with 5 tokens: 1 waiting, 0 working, "
            "15 left, of 16 CTAs.",
        ),
        (
            {"event": "path_switch", "from": "fused", "to": "baseline", "reason": "stall"},
            "bad",
            "The path changed from fused to baseline: a stalled kernel.",
        ),
        (
            {"event": "path_switch", "from": "shadow", "to": "fused", "reason": "proven"},
            "good",
            "The path changed from shadow to fused: it compared well with the baseline.",
        ),
        (
            {"event": "recovery", "rung": "abort", "worker": "a", "seconds": 0.0817},
            "good",
            "Recovered by abort: worker a answered 82 ms after the detection.",
        ),
        (
            {"event": "worker_gone", "worker": "a", "exit_code": -9},
            "warn",
            "The process of worker a is gone, killed by signal 9.",
        ),
        (
            {"event": "worker_ready", "worker": "b", "fused": False, "seconds": 75.2},
            "bad",
            "Worker b is ready after 1 min. It serves on the baseline alone.",
        ),
        (
            {"event": "buckets_proven", "worker": "a", "buckets": "1 4 16"},
            "good",
            "The fused path is proven for the batch sizes 1, 4, 16.",
        ),
        (
            {"event": "weights_ready", "holder": "weights", "size_bytes": 3 * 2**19},
            "good",
            "The holder weights has the weights, 1.5 MiB.",
        ),
        (
            {"event": "weights_failed", "holder": "weights", "reason": "no layer 9."},
            "bad",
            "The holder weights cannot load the weights: no layer 9.",
        ),
        ({"event": "kill"}, "warn", "Worker ? is killed."),
        (
            {"event": "give_up", "reason": "Xid 79", "exit_code": 71, "node_action": "drain_node"},
            "bad",
            "The tree gives up: Xid 79. The node needs: drain_node.",
        ),
        ({"event": "give_up", "reason": "no", "exit_code": 70, "node_action": ""}, "bad", "The tree gives up: no."),
        ({"event": "of_tomorrow", "worker": "a", "wait_s": 0.5}, "note", "of tomorrow worker=a wait_s=500 ms"),
    ],
)
def test_sentences(event: Event, tone: str, sentence: str) -> None:
    assert (words.tone_of(event), words.sentence(event)) == (tone, sentence)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0004, "0 ms"), (0.0817, "82 ms"), (2.31, "2.3 s"), (45.2, "45 s"), (300, "5 min"), (7300, "2 h"), (2e5, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text
