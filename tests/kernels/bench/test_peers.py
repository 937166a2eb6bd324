"""The peers' table, and which of them is the best of a cell."""

from __future__ import annotations

import pytest

from fdmoe_kernels.bench.models import MODELS, TOKENS
from fdmoe_kernels.bench.peers import Mode, best_peer, chosen_experts, load_peers


@pytest.mark.parametrize(
    ("model", "tokens", "mode", "expected"),
    [
        ("qwen3-30b-a3b", 1, "graph", ("sgl_tuned", 44.8)),
        ("qwen3-30b-a3b", 1, "eager", ("vllm", 201.5)),
        ("qwen3-30b-a3b", 16384, "graph", ("tk351", 2152.0)),
        ("mixtral-8x7b", 1, "graph", ("vllm", 197.1)),
        ("mixtral-8x7b", 4096, "eager", ("tk351", 4352.3)),
        ("olmoe", 256, "graph", ("sgl_tuned", 238.1)),
        ("olmoe", 16, "eager", ("deepgemm", 257.7)),
    ],
)
def test_the_best_peer_is_the_fastest_of_the_same_mode(
    model: str, tokens: int, mode: Mode, expected: tuple[str, float]
) -> None:
    assert best_peer(model, tokens, "bfloat16", mode) == expected


@pytest.mark.parametrize(
    ("model", "tokens", "dtype"),
    [("qwen3-30b-a3b", 1, "float16"), ("qwen3-30b-a3b", 2, "bfloat16"), ("no model", 1, "bfloat16")],
)
def test_a_cell_the_table_does_not_have_has_no_best_peer(model: str, tokens: int, dtype: str) -> None:
    assert best_peer(model, tokens, dtype, "graph") is None


def test_which_experts_a_few_tokens_chose() -> None:
    assert chosen_experts("qwen3-30b-a3b", 16) == 88
    assert chosen_experts("olmoe", 16) == 50
    assert chosen_experts("olmoe", 64) == 64  # one random batch in 65 leaves one out
    assert chosen_experts("mixtral-8x7b", 16) == 8
    assert chosen_experts("mixtral-8x7b", 64) is chosen_experts("olmoe", 256) is None


def test_each_cell_has_ten_peers_or_more_and_a_peer_at_most_once() -> None:
    peers = load_peers()
    for model in MODELS:
        for tokens in TOKENS:
            names = [peer.peer for peer in peers if (peer.model, peer.tokens) == (model, tokens)]
            assert len(names) == len(set(names))
            assert 10 <= len(names) <= 12
    assert len({peer.peer for peer in peers}) == 12


def test_a_peer_without_a_graph_has_no_graph_time_and_none_is_wrong() -> None:
    assert {peer.peer for peer in load_peers() if peer.graph_us is None} == {"hf_eager"}
    assert max(peer.relative_error for peer in load_peers()) < 6e-3
    assert {peer.note.partition(":")[0] for peer in load_peers()} == {"one NVIDIA H200, 2026-11-24"}
