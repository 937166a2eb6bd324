"""Requests whose right answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from moe_layers import random_layer

from fdmoe_kernels.comparing import close_calls
from fdmoe_ops.chaos.load import Pool
from fdmoe_ops.settings import SettingsError

LAYER = random_layer(8, 64, 32, 2)


def test_no_token_of_a_pool_stands_between_two_experts() -> None:
    pool = Pool.of("m/layers.0", LAYER, 40)
    x = torch.cat([torch.frombuffer(bytearray(raw), dtype=torch.float32).view(-1, 64) for raw in pool.inputs])
    assert x.shape[0] == sum(rows.shape[0] for rows in pool.expected) > 300
    assert not close_calls(x, LAYER).any()


def test_an_answer_is_wrong_if_one_of_its_tokens_is() -> None:
    pool = Pool.of("m/layers.0", LAYER, 40)
    index, right = max(enumerate(pool.expected), key=lambda pair: pair[1].shape[0])
    assert not pool.is_wrong(index, right.numpy().tobytes())
    wrong = right.clone()
    wrong[3] *= 1.0003
    assert (wrong - right).norm() / right.norm() < 1e-4, "which the whole does not show"
    assert pool.is_wrong(index, wrong.numpy().tobytes())
    assert pool.is_wrong(index, right[:-1].numpy().tobytes())
    assert pool.is_wrong(index, b"")
    assert pool.is_wrong(index, right.numpy().tobytes()[:-1])


def test_the_smallest_request_is_known() -> None:
    pool = Pool.of("m/layers.0", LAYER, 40)
    known = pool.target.known
    assert known is not None
    index, right = min(enumerate(pool.expected), key=lambda pair: pair[1].shape[0])
    assert (known.tokens, known.data) == (right.shape[0], pool.inputs[index])
    raw = pool.target.whole(*pool.target.known_or_random())
    assert raw.startswith(b"POST /v2/models/m/layers.0/infer HTTP/1.1\r\n")
    assert raw.endswith(known.data)
    assert not known.is_wrong(right.numpy().tobytes())
    assert known.is_wrong((-right).numpy().tobytes())


def test_a_router_that_tells_no_experts_apart_is_said() -> None:
    one = LAYER.router[:1].expand(8, -1).contiguous()
    with pytest.raises(SettingsError, match=r"of .* random tokens 0 go to experts that the model's router tells apart"):
        Pool.of("m/layers.0", replace(LAYER, router=one), 4)
