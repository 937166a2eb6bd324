"""The float32 reference: clear and slow, one token at a time as the definition reads."""

from __future__ import annotations

import torch
from torch.nn import functional

from fdmoe_kernels.layer import MoELayer


def reference_moe(x: torch.Tensor, layer: MoELayer) -> torch.Tensor:
    """y [T, H] float32 for x [T, H], all arithmetic in float32 (IEEE) on upcast weights."""
    layer.check_input(x)
    x = x.float()
    probabilities = torch.softmax(x @ layer.router.float().T, dim=-1)
    weights, chosen = torch.topk(probabilities, layer.routing.top_k, dim=-1)
    if layer.routing.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in range(layer.experts):
        token, k = torch.nonzero(chosen == expert, as_tuple=True)
        if token.numel() == 0:
            continue
        gate, up = (x[token] @ layer.gate_up[expert].float().T).chunk(2, dim=-1)
        rows = (functional.silu(gate) * up) @ layer.down[expert].float().T
        y.index_add_(0, token, weights[token, k, None] * rows)
    return y
