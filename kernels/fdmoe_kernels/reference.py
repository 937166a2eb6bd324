"""The float32 reference: clear and slow, one expert at a time as the definition reads."""

from __future__ import annotations

import torch

from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing, choose


def reference_moe(x: torch.Tensor, layer: MoELayer, *, routing: Routing | None = None) -> torch.Tensor:
    """y [T, H] float32 for x [T, H], all arithmetic in float32 (IEEE) on upcast weights; by `routing` where given, else
    by the layer's router. Raises ValueError for an input or a routing that does not fit the layer."""
    layer.check_input(x)
    if routing is not None:
        routing.check(x.shape[0], layer.routing.top_k, layer.device)
    x = x.float()
    if routing is None:
        logits = _linear(x, layer.router, layer.router_bias)
        routing = choose(logits, layer.routing, layer.correction_bias)
    y = torch.zeros_like(x)
    for expert in range(layer.experts):
        token, k = torch.nonzero((routing.experts == expert) & (routing.weights != 0), as_tuple=True)
        if token.numel():
            y.index_add_(0, token, routing.weights[token, k, None] * _expert(x[token], layer, expert))
    shared = torch.zeros_like(x)
    for expert in range(layer.experts, layer.all_experts):
        shared += _expert(x, layer, expert)
    if layer.shared_gate is not None:
        shared *= torch.sigmoid(x @ layer.shared_gate.float())[:, None]
    return y + shared


def _expert(rows: torch.Tensor, layer: MoELayer, expert: int) -> torch.Tensor:
    gate_up_bias = None if layer.gate_up_bias is None else layer.gate_up_bias[expert]
    down_bias = None if layer.down_bias is None else layer.down_bias[expert]
    gate, up = _linear(rows, layer.gate_up[expert], gate_up_bias).chunk(2, dim=-1)
    limit, alpha = layer.activation.limit, layer.activation.alpha
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return _linear(
        gate * torch.sigmoid(alpha * gate) * (up + layer.activation.up_offset), layer.down[expert], down_bias
    )


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.nn.functional.linear(x, weight.float(), None if bias is None else bias.float())
