"""The baseline path: the MoE layer in plain torch, on any device and dtype torch has.

One grouped matrix product per projection where torch has it for the device and dtype, a loop over experts elsewhere. It
shares nothing with the one-launch kernel but the weights and the routing rule's definition.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from fdmoe_kernels.activation import SILU
from fdmoe_kernels.hardware import grouped_mm_supported
from fdmoe_kernels.layer import MoELayer, check_output
from fdmoe_kernels.routing import Routing, choose

# rows sorted by expert [N, ..], rows of each expert [E+S] int32, the expert of each row [N] -> [N, H]
_Experts = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, MoELayer], torch.Tensor]


def baseline_moe(
    x: torch.Tensor, layer: MoELayer, *, routing: Routing | None = None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """y [T, H] for x [T, H], of the layer's dtype; deterministic: the rows of a token are summed in the order of k, the
    shared experts' last. By `routing` where given, else by the layer's router. Into `out` [T, H] like x, where given.

    Raises ValueError for an input or a routing that does not fit the layer, and for an `out` that is not like x.
    """
    layer.check_input(x)
    if out is not None:
        check_output(out, x)
    if routing is None:
        weights, chosen, live = *_with_shared(x, route(x, layer), layer), None
    else:
        routing.check(x.shape[0], layer.routing.top_k, layer.device)
        weights, chosen = _with_shared(x, routing, layer)
        live = (chosen >= 0) & (chosen < layer.all_experts) & (weights != 0)
        # entries that contribute nothing are sorted behind all experts
        chosen = chosen.masked_fill(~live, layer.all_experts)
    # entries (token, k) sorted by expert; a stable sort keeps tokens in order within an expert
    sorted_experts, order = chosen.flatten().sort(stable=True)
    rows = x[order // layer.entries_per_token]
    counts = torch.zeros(layer.all_experts + 1, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, sorted_experts, torch.ones_like(order, dtype=torch.int32))
    run: _Experts = _grouped if x.shape[0] > 0 and _can_be_grouped(layer) else _looped
    sorted_rows = run(rows, counts[:-1], sorted_experts.clamp(max=layer.all_experts - 1), layer)
    part = torch.empty_like(sorted_rows)
    part[order] = sorted_rows
    part = part.view(-1, layer.entries_per_token, layer.hidden_size).float()
    if live is not None:
        part = part.masked_fill(~live[..., None], 0)
    y = torch.einsum("tkh,tk->th", part, weights)
    if out is None:
        return y.to(x.dtype)
    return out.copy_(y)


def route(x: torch.Tensor, layer: MoELayer) -> Routing:
    """What the layer's own router chooses for x [T, H]."""
    return choose(router_logits(x, layer), layer.routing, layer.correction_bias)


def router_logits(x: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    """[T, E] float32 for x [T, H]."""
    bias = None if layer.router_bias is None else layer.router_bias.float()
    return functional.linear(x.float(), layer.router.float(), bias)


def _with_shared(x: torch.Tensor, routing: Routing, layer: MoELayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 and experts int64, both [T, K + S]; an expert out of 0..E-1 becomes -1."""
    experts = routing.experts.long()
    experts = experts.masked_fill(experts >= layer.experts, -1)
    if not layer.shared_experts:
        return routing.weights, experts
    shared = torch.arange(layer.experts, layer.all_experts, device=x.device).expand(x.shape[0], -1)
    weight = torch.ones(x.shape[0], device=x.device)
    if layer.shared_gate is not None:
        weight = torch.sigmoid(x.float() @ layer.shared_gate.float())
    weights = torch.cat([routing.weights, weight[:, None].expand(-1, layer.shared_experts)], dim=1)
    return weights, torch.cat([experts, shared], dim=1)


def _activate(gate_up: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    rule = layer.activation
    gate, up = gate_up.chunk(2, dim=-1)
    if rule == SILU:
        return functional.silu(gate) * up
    gate, up = gate.float(), up.float()  # each of the steps below would round again
    if rule.limit is not None:
        gate, up = gate.clamp(max=rule.limit), up.clamp(-rule.limit, rule.limit)
    return (gate * torch.sigmoid(rule.alpha * gate) * (up + rule.up_offset)).to(gate_up.dtype)


def _can_be_grouped(layer: MoELayer) -> bool:
    """torch's grouped product asks for rows at multiples of 16 bytes."""
    row_bytes = (size * layer.dtype.itemsize for size in (layer.hidden_size, layer.intermediate_size))
    return grouped_mm_supported(layer.device, layer.dtype) and all(size % 16 == 0 for size in row_bytes)


def _grouped(rows: torch.Tensor, counts: torch.Tensor, experts: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    gate_up = functional.grouped_mm(rows, layer.gate_up.transpose(1, 2), offs=ends)
    if layer.gate_up_bias is not None:
        gate_up += layer.gate_up_bias[experts]
    result = functional.grouped_mm(_activate(gate_up, layer), layer.down.transpose(1, 2), offs=ends)
    if layer.down_bias is not None:
        result += layer.down_bias[experts]
    return result


def _looped(rows: torch.Tensor, counts: torch.Tensor, _experts: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    result = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            mine = slice(start, start + count)
            gate_up_bias = None if layer.gate_up_bias is None else layer.gate_up_bias[expert]
            down_bias = None if layer.down_bias is None else layer.down_bias[expert]
            act = _activate(functional.linear(rows[mine], layer.gate_up[expert], gate_up_bias), layer)
            result[mine] = functional.linear(act, layer.down[expert], down_bias)
            start += count
    return result
