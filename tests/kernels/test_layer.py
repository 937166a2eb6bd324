"""What a layer, its rules and a given routing refuse, and how weights are packed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from moe_layers import random_layer

from fdmoe_kernels import MoELayer, Routing, RoutingRule, Scores, SwiGLU

E, S, H, I, K = 8, 1, 32, 16, 2  # noqa: E741


def _layer(**changes: Any) -> MoELayer:
    parts: dict[str, Any] = {
        "router": torch.zeros(E, H), "gate_up": torch.zeros(E + S, 2 * I, H), "down": torch.zeros(E + S, H, I),
        "routing": RoutingRule(K, renormalize=True), "shared_experts": S,
    }  # fmt: skip
    return MoELayer(**(parts | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router": torch.zeros(E)}, r"router, gate_up and down have shapes \(8,\), .*\[E, H\], \[E \+ S, 2I, H\]"),
        ({"router": torch.zeros(0, H)}, r"\(E, H, I\) = \(0, 32, 16\); each must be at least 1"),
        ({"gate_up": torch.zeros(E, 2 * I, H)}, r"gate_up has shape \(8, 32, 32\); .* ask for \(9, 32, 32\)"),
        ({"down": torch.zeros(E, H, I)}, r"down has shape \(8, 32, 16\); .* 1 shared experts ask for \(9, 32, 16\)"),
        ({"router_bias": torch.zeros(E + S)}, r"router_bias has shape \(9,\); .* ask for \(8,\)"),
        ({"correction_bias": torch.zeros(1, E)}, r"correction_bias has shape \(1, 8\); .* ask for \(8,\)"),
        ({"gate_up_bias": torch.zeros(E, 2 * I)}, r"gate_up_bias has shape \(8, 32\); .* ask for \(9, 32\)"),
        ({"down_bias": torch.zeros(E, H)}, r"down_bias has shape \(8, 32\); .* ask for \(9, 32\)"),
        ({"shared_gate": torch.zeros(1, H)}, r"shared_gate has shape \(1, 32\); .* ask for \(32,\)"),
        ({"router": torch.zeros(E, H).double()}, "router is torch.float64; gate_up is torch.float32"),
        ({"gate_up": torch.zeros(E + S, 2 * I, H).int()}, "gate_up is torch.int32; all weights are of one of"),
        ({"down_bias": torch.zeros(E + S, H).half()}, "down_bias is torch.float16; gate_up is torch.float32"),
        ({"correction_bias": torch.zeros(E).half()}, "correction_bias is torch.float16; torch.float32 is needed"),
        ({"router_bias": torch.zeros(E, device="meta")}, "router_bias is on meta; gate_up is on cpu"),
        ({"router": torch.zeros(H, E).T}, r"router has strides \(1, 8\); contiguous weights are needed"),
        ({"shared_experts": -1}, "shared_experts is -1; 0 or more are allowed"),
        ({"shared_experts": 0, "shared_gate": torch.zeros(H)}, "shared_gate is given and shared_experts is 0"),
        ({"routing": RoutingRule(9, True)}, "top_k is 9; the layer has 8 experts"),
        ({"routing": RoutingRule(2, True, groups=3)}, "groups is 3; a divisor of 8, the number of experts, is needed"),
        ({"routing": RoutingRule(2, True, groups=4, group_scores=3)}, "group_scores is 3; a group has 2 experts"),
        ({"routing": RoutingRule(3, True, groups=4)}, "top_k is 3; the 1 best groups have 2 experts"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _layer(**changes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_k": 0}, "top_k is 0; at least 1 expert is chosen per token"),
        ({"groups": 0}, "groups is 0; at least 1 is needed"),
        ({"groups": 2, "top_groups": 3}, "top_groups is 3; 1 to 2, the number of groups, is allowed"),
        ({"top_groups": 2}, "top_groups is 2; 1 to 1, the number of groups, is allowed"),
        ({"group_scores": 0}, "group_scores is 0; at least 1 is needed"),
        ({"scaling": 0.0}, r"scaling is 0\.0; a finite number above 0 is needed"),
        ({"scaling": float("nan")}, "scaling is nan; a finite number above 0"),
        ({"scores": "tanh"}, "'tanh' is not a valid Scores"),
    ],
)
def test_rules_that_make_no_sense_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingRule(**({"top_k": 2, "renormalize": True} | values))


def test_a_rule_takes_its_scores_by_name() -> None:
    assert RoutingRule(2, True, scores="sigmoid").scores is Scores.SIGMOID  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": float("inf")}, "alpha is inf; a finite number is needed"),
        ({"up_offset": float("nan")}, "up_offset is nan; a finite number is needed"),
        ({"limit": 0.0}, r"limit is 0\.0; a finite number above 0, or None, is needed"),
    ],
)
def test_activations_that_make_no_sense_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SwiGLU(**values)


@pytest.mark.parametrize(
    ("experts", "weights", "message"),
    [
        (torch.zeros(3, 3).int(), torch.zeros(3, 2), r"routing.experts has shape \(3, 3\); \[3, 2\] is needed"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "routing.experts is torch.float32; torch.int32 or torch.int64"),
        (torch.zeros(3, 2).int(), torch.zeros(2, 2), r"routing.weights has shape \(2, 2\); \[3, 2\] is needed"),
        (torch.zeros(3, 2).int(), torch.zeros(3, 2).half(), "routing.weights is torch.float16; torch.float32"),
        (torch.zeros(3, 2, device="meta").int(), torch.zeros(3, 2), "routing.experts is on meta; the layer is on cpu"),
        (torch.zeros(2, 3).int().T, torch.zeros(3, 2), r"routing.experts has strides \(1, 3\); a contiguous"),
    ],
)
def test_given_routings_that_do_not_fit_are_named(experts: torch.Tensor, weights: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Routing(experts, weights).check(3, K, torch.device("cpu"))


def test_a_large_shared_expert_is_packed_as_slices() -> None:
    plain = random_layer(4, 32, 16, 2)
    wide = random_layer(1, 32, 40, 1, seed=1)  # 40 rows: two slices of 16 and one of 8
    gates, ups = plain.gate_up.chunk(2, dim=1)
    gate, up = wide.gate_up[0].chunk(2)
    bias = torch.arange(4 * 16.0).view(4, 16)
    packed = MoELayer.pack(
        plain.router, list(gates), list(ups), list(plain.down), plain.routing,
        device="cpu", dtype=torch.float32,
        shared=(gate, up, wide.down[0]), shared_gate=torch.ones(1, 32), correction_bias=torch.ones(4).bfloat16(),
        router_bias=torch.full((4,), 2.0), gate_bias=bias, up_bias=-bias, down_bias=torch.ones(4, 32),
    )  # fmt: skip
    assert (packed.experts, packed.all_experts, packed.shared_experts, packed.entries_per_token) == (4, 7, 3, 5)
    assert torch.equal(packed.gate_up[:4], plain.gate_up)
    assert torch.equal(packed.gate_up[4, :16], gate[:16])
    assert torch.equal(packed.gate_up[5, 16:], up[16:32])
    assert torch.equal(packed.gate_up[6, :8], gate[32:])
    assert torch.equal(packed.down[6, :, :8], wide.down[0][:, 32:])
    assert packed.gate_up[6, 8:16].count_nonzero() == packed.down[6, :, 8:].count_nonzero() == 0
    assert packed.gate_up_bias is not None
    assert torch.equal(packed.gate_up_bias[:4], torch.cat([bias, -bias], dim=1))
    assert packed.gate_up_bias[4:].count_nonzero() == 0
    assert packed.down_bias is not None
    assert packed.down_bias.sum(dim=1).tolist() == [32.0] * 4 + [0.0] * 3
    assert packed.correction_bias is not None
    assert packed.correction_bias.dtype == torch.float32
    assert packed.shared_gate is not None
    assert packed.shared_gate.shape == (32,)


def test_half_of_the_biases_is_refused() -> None:
    plain = random_layer(4, 32, 16, 2)
    gates, ups = plain.gate_up.chunk(2, dim=1)
    with pytest.raises(ValueError, match="gate_bias is given without up_bias; both or neither are needed"):
        MoELayer.pack(
            plain.router, list(gates), list(ups), list(plain.down), plain.routing,
            device="cpu", dtype=torch.float32, gate_bias=torch.zeros(4, 16),
        )  # fmt: skip


def pack_everything(device: str, out: Mapping[str, torch.Tensor] | None = None) -> MoELayer:
    """4 routed experts of 16 rows and a shared one of 40, with each tensor that a layer can have."""
    plain, wide = random_layer(4, 32, 16, 2), random_layer(1, 32, 40, 1, seed=1)
    gates, ups = plain.gate_up.chunk(2, dim=1)
    gate, up = wide.gate_up[0].chunk(2)
    bias = torch.arange(4 * 16.0).view(4, 16)
    return MoELayer.pack(
        plain.router, list(gates), list(ups), list(plain.down), plain.routing, device=device, dtype=torch.bfloat16,
        shared=(gate, up, wide.down[0]), shared_gate=torch.ones(1, 32), correction_bias=torch.ones(4),
        router_bias=torch.full((4,), 2.0), gate_bias=bias, up_bias=-bias, down_bias=torch.ones(4, 32), out=out,
    )  # fmt: skip


def test_a_layer_is_packed_into_memory_that_is_given_whatever_is_in_it() -> None:
    meta = pack_everything("meta")
    out = {
        name: torch.full(tensor.shape, float("nan"), dtype=tensor.dtype) for name, tensor in meta.tensors.items()
    }  # fmt: skip
    packed, expected = pack_everything("cpu", out), pack_everything("cpu")
    assert (packed.shared_experts, packed.routing) == (3, expected.routing)
    assert packed.tensors.keys() == expected.tensors.keys()
    for name, tensor in packed.tensors.items():
        assert tensor is out[name]
        assert tensor.dtype == expected.tensors[name].dtype
        assert torch.equal(tensor, expected.tensors[name]), name


def test_memory_that_does_not_fit_the_layer_is_named() -> None:
    out = pack_everything("cpu").tensors
    with pytest.raises(ValueError, match=r"out has correction_bias, down, .*; the layer has correction_bias, down"):
        pack_everything("cpu", {name: out[name] for name in out if name != "router_bias"})
    # a shape that the values could be broadcast to
    router = torch.zeros(2, 4, 32, dtype=torch.bfloat16)
    message = r"out's router is \(2, 4, 32\) torch.bfloat16 on cpu; \(4, 32\) torch.bfloat16 on cpu is needed"
    with pytest.raises(ValueError, match=message):
        pack_everything("cpu", out | {"router": router})
    with pytest.raises(ValueError, match=r"out's down is \(7, 32, 16\) torch.float32 on cpu; \(7, 32, 16\) torch.bf"):
        pack_everything("cpu", out | {"down": out["down"].float()})
