"""The baseline path: the MoE layer in plain torch, on any device and dtype torch has.

One grouped matrix product per projection where torch has it for the device and dtype, a loop over experts elsewhere. It
shares nothing with the one-launch kernel but the weights.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from fdmoe_kernels.hardware import grouped_mm_supported
from fdmoe_kernels.layer import MoELayer


def baseline_moe(x: torch.Tensor, layer: MoELayer, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """y [T, H] for x [T, H], of the layer's dtype; deterministic: the K rows of a token are summed in the order of k.

    Raises ValueError for an input that does not fit the layer.
    """
    layer.check_input(x)
    weights, chosen = _route(x, layer)
    # entries (token, k) sorted by expert; a stable sort keeps tokens in order within an expert
    order = torch.argsort(chosen.flatten(), stable=True)
    rows = x[order // layer.routing.top_k]
    counts = torch.zeros(layer.experts, dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, chosen.flatten(), torch.ones_like(order, dtype=torch.int32))
    run = _grouped if grouped_mm_supported(x.device, x.dtype) and x.shape[0] > 0 else _looped
    sorted_rows = run(rows, counts, layer)
    part = torch.empty_like(sorted_rows)
    part[order] = sorted_rows
    y = torch.einsum("tkh,tk->th", part.view(-1, layer.routing.top_k, layer.hidden_size).float(), weights)
    if out is None:
        return y.to(x.dtype)
    return out.copy_(y)


def _route(x: torch.Tensor, layer: MoELayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights float32 and experts int64, both [T, K]."""
    logits = functional.linear(x.float(), layer.router.float())
    weights, chosen = torch.topk(torch.softmax(logits, dim=-1), layer.routing.top_k, dim=-1)
    if layer.routing.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights, chosen


def _grouped(rows: torch.Tensor, counts: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    gate, up = functional.grouped_mm(rows, layer.gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
    return functional.grouped_mm(functional.silu(gate) * up, layer.down.transpose(1, 2), offs=ends)


def _looped(rows: torch.Tensor, counts: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    result = torch.empty_like(rows)
    start = 0
    for expert, count in enumerate(counts.tolist()):
        if count:
            mine = slice(start, start + count)
            gate, up = functional.linear(rows[mine], layer.gate_up[expert]).chunk(2, dim=-1)
            result[mine] = functional.linear(functional.silu(gate) * up, layer.down[expert])
            start += count
    return result
