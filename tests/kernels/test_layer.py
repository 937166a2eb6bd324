"""What a layer, its rules and a given routing refuse, and how weights are packed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
        ({"scores": "tanh"}, "^scores is 'tanh'; 'softmax' or 'sigmoid' is allowed$"),
        ({"top_k": 2.5}, r"^top_k is 2\.5; an int is needed$"),
        ({"top_k": 2.0}, r"^top_k is 2\.0; an int is needed$"),
        ({"groups": 2.0}, r"^groups is 2\.0; an int is needed$"),
        ({"top_groups": "1"}, r"^top_groups is '1'; an int is needed$"),
        ({"group_scores": None}, "^group_scores is None; an int is needed$"),
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


def _parts() -> dict[str, Any]:
    """What pack takes for 4 experts of [16, 32] and a shared one of 40, with each tensor that a layer can have."""
    return {
        "router": torch.ones(4, H), "gates": [torch.ones(I, H)] * 4, "ups": [torch.ones(I, H)] * 4,
        "downs": [torch.ones(H, I)] * 4, "routing": RoutingRule(K, True), "device": "cpu", "dtype": torch.float32,
        "router_bias": torch.ones(4), "correction_bias": torch.ones(4), "gate_bias": torch.ones(4, I),
        "up_bias": torch.ones(4, I), "down_bias": torch.ones(4, H),
        "shared": (torch.ones(40, H), torch.ones(40, H), torch.ones(H, 40)), "shared_gate": torch.ones(H),
    }  # fmt: skip


def _with_second(values: list[torch.Tensor], *shape: int) -> list[torch.Tensor]:
    return [values[0], torch.ones(shape), *values[2:]]


GATES, DOWNS = [torch.ones(I, H)] * 4, [torch.ones(H, I)] * 4
WIDE, NARROW = torch.ones(40, H), torch.ones(H, 40)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # all that torch would broadcast, and a smaller expert, which would be padded
        ({"ups": _with_second(GATES, 1, H)}, "ups[1] has shape (1, 32); (16, 32) is needed"),
        ({"ups": _with_second(GATES, I, 1)}, "ups[1] has shape (16, 1); (16, 32) is needed"),
        ({"ups": _with_second(GATES, H)}, "ups[1] has shape (32,); (16, 32) is needed"),
        ({"gates": _with_second(GATES, 1, H)}, "gates[1] has shape (1, 32); (16, 32) is needed"),
        ({"gates": _with_second(GATES, I, 1)}, "gates[1] has shape (16, 1); (16, 32) is needed"),
        ({"gates": _with_second(GATES, 8, H)}, "gates[1] has shape (8, 32); (16, 32) is needed"),
        ({"downs": _with_second(DOWNS, H, 1)}, "downs[1] has shape (32, 1); (32, 16) is needed"),
        ({"downs": _with_second(DOWNS, 1, I)}, "downs[1] has shape (1, 16); (32, 16) is needed"),
        ({"gates": _with_second(GATES, 17, H)}, "gates[1] has shape (17, 32); (16, 32) is needed"),
        ({"downs": GATES}, "downs[0] has shape (16, 32); (32, 16) is needed"),
        ({"gates": [torch.ones(I)] * 4}, "gates[0] has shape (16,); [I, H], each at least 1, is needed"),
        ({"gates": [torch.ones(0, H)] * 4}, "gates[0] has shape (0, 32); [I, H], each at least 1, is needed"),
        (
            {"gates": [], "ups": [], "downs": []},
            "there are 0 gates, 0 ups and 0 downs; as many of each, and at least 1, are needed",
        ),
        ({"ups": GATES[:3]}, "there are 4 gates, 3 ups and 4 downs; as many of each, and at least 1, are needed"),
        ({"router": torch.ones(5, H)}, "router has shape (5, 32); (4, 32) is needed"),
        ({"router": torch.ones(4, 31)}, "router has shape (4, 31); (4, 32) is needed"),
        ({"router_bias": torch.ones(1)}, "router_bias has shape (1,); (4,) is needed"),
        ({"correction_bias": torch.ones(1, 4)}, "correction_bias has shape (1, 4); (4,) is needed"),
        ({"gate_bias": torch.ones(4, 2 * I)}, "gate_bias has shape (4, 32); (4, 16) is needed"),
        (
            {"gate_bias": torch.ones(4, I - 1), "up_bias": torch.ones(4, I + 1)},
            "gate_bias has shape (4, 15); (4, 16) is needed",
        ),
        ({"up_bias": torch.ones(I)}, "up_bias has shape (16,); (4, 16) is needed"),
        ({"down_bias": torch.ones(1, H)}, "down_bias has shape (1, 32); (4, 32) is needed"),
        ({"shared": (torch.ones(40, 1), WIDE, NARROW)},
            "shared's gate has shape (40, 1); [Is, 32], Is at least 1, is needed"),
        ({"shared": (torch.ones(0, H), WIDE, NARROW)},
            "shared's gate has shape (0, 32); [Is, 32], Is at least 1, is needed"),
        ({"shared": (WIDE, torch.ones(40, 1), NARROW)}, "shared's up has shape (40, 1); (40, 32) is needed"),
        ({"shared": (WIDE, torch.ones(39, H), NARROW)}, "shared's up has shape (39, 32); (40, 32) is needed"),
        ({"shared": (WIDE, WIDE, torch.ones(1, 40))}, "shared's down has shape (1, 40); (32, 40) is needed"),
        ({"shared_gate": torch.ones(H, 1)}, "shared_gate has shape (32, 1); (1, 32) is needed"),
        ({"shared_gate": torch.ones(H + 1)}, "shared_gate has shape (33,); (32,) is needed"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named_and_nothing_is_packed(changes: dict[str, Any], message: str) -> None:
    out = {name: torch.zeros_like(tensor) for name, tensor in MoELayer.pack(**_parts()).tensors.items()}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MoELayer.pack(**(_parts() | changes), out=out)
    assert not any(tensor.any() for tensor in out.values())


class Loaded(Sequence[torch.Tensor]):
    """As a sequence may be that loads what it is asked for."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self.tensors, self.asked = tensors, list[int]()

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: Any) -> Any:
        value = self.tensors[index]
        self.asked.append(index)
        return value


def test_each_weight_is_asked_for_once() -> None:
    parts = {name: Loaded(_parts()[name]) for name in ("gates", "ups", "downs")}
    MoELayer.pack(**(_parts() | parts))
    assert [part.asked for part in parts.values()] == [[0, 1, 2, 3]] * 3


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
