"""`PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python -P benchmarks/sanitize.py [PART ...]`

Launches of every form of the kernel on shapes that are small, but for one, each compared with the float32 reference,
for compute-sanitizer to look at: with torch's cache of memory, an access beyond a tensor would still be inside what
torch holds. What it says of calls to cuGetProcAddress_v2 are questions of cuda.bindings for functions that the driver
does not have.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace

import torch

from fdmoe_kernels import MoELayer, Routing, RoutingRule, Scores, SwiGLU, Workspace, fused_moe, reference_moe
from fdmoe_kernels.bench.measuring import new_page
from fdmoe_kernels.bench.models import Model, random_tokens
from fdmoe_kernels.comparing import compare
from fdmoe_kernels.tune.trials import MOST_ERROR

_DEVICE = torch.device("cuda")


def _layer(experts: int, hidden: int, intermediate: int, dtype: torch.dtype = torch.bfloat16) -> MoELayer:
    return Model(hidden, intermediate, experts, 2, renormalize=True).random_layer(dtype, _DEVICE)


def _compare(what: str, layer: MoELayer, x: torch.Tensor, y: torch.Tensor, routing: Routing | None = None) -> str:
    torch.cuda.synchronize()
    found = compare(y, reference_moe(x, layer, routing=routing), x, layer, routed=routing is None)
    assert found.rows > 0, what
    assert found.within(MOST_ERROR), f"{what}: {found}"
    return f"{what}: {found.whole:.1e}"


def _hopper() -> Iterator[str]:
    """Both ways that rows are read, single CTAs and pairs, few CTAs and all, sizes that no tile divides, and down items
    behind combine items."""
    for experts, hidden, intermediate, tokens in ((8, 128, 64, 908), (5, 200, 328, 801), (8, 512, 64, 900)):
        layer = _layer(experts, hidden, intermediate)
        workspace = Workspace(layer, tokens, page=new_page(_DEVICE))
        plan = workspace.hopper_plan(layer, tokens)
        assert plan is not None
        x = random_tokens(layer, tokens)
        own = plan.tiles(tokens)
        cuts = {
            "as it is": own,
            "single": replace(own, paired=False),
            "pairs": replace(own, sort=True, paired=True),
            "four blocks": replace(own, slots=4, column_blocks=4),
            "gathered": replace(own, sort=False, paired=False),
            "32 tokens chosen for": replace(own, route_tokens=32, choose_tokens=32),
            "63 tokens combined": replace(own, combine_tokens=63),
        }
        for name, tiles in cuts.items():
            for programs in (0, 6):
                y = torch.empty_like(x)
                plan.launch(x, y, tiles=tiles, programs=programs)
                yield _compare(f"hopper, H {hidden}, {name}, {programs or 'all'} CTAs", layer, x, y)


def _one_token() -> Iterator[str]:
    """Rows of one token beyond those that are kept in shared memory, on all CTAs and several items of each."""
    layer = Model(2816, 4352, 3, 1, renormalize=True).random_layer(torch.bfloat16, _DEVICE)
    workspace = Workspace(layer, 1, page=new_page(_DEVICE))
    x = random_tokens(layer, 1)
    for programs in (0, 50):
        y = fused_moe(x, layer, workspace, programs=programs)
        yield _compare(f"one token, H 2816, {programs or 'all'} CTAs", layer, x, y)


def _forms() -> Iterator[str]:
    """The public op: one token, the portable form, fp16 and float32, and routings made elsewhere."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        layer = _layer(40, 200, 72, dtype)
        workspace = Workspace(layer, 500, page=new_page(_DEVICE))
        for tokens in (1, 3, 40, 500):
            x = random_tokens(layer, tokens)
            y = fused_moe(x, layer, workspace)
            yield _compare(f"{dtype}, {tokens} tokens, {workspace.form(layer, tokens)}", layer, x, y)
            experts = torch.randint(0, 40, (tokens, 2), device=_DEVICE)
            # two that do not exist contribute nothing, in any type
            experts[0, 0] = -1
            if tokens > 1:
                experts[-1, 1] = 40
            routing = Routing(experts, torch.rand(tokens, 2, device=_DEVICE) + 0.5)
            y = fused_moe(x, layer, workspace, routing=routing)
            yield _compare(f"{dtype}, {tokens} tokens, given", layer, x, y, routing)


def _rules() -> Iterator[str]:
    """What routes and computes in other ways, to the largest batch of the workspace, and beside a token without a
    number in it."""
    grouped = RoutingRule(4, renormalize=False, groups=4, top_groups=2, group_scores=2)
    sigmoid = RoutingRule(
        4, renormalize=True, scores=Scores.SIGMOID, groups=4, top_groups=2, group_scores=2, scaling=2.5
    )
    layers = {
        "groups": replace(_layer(24, 128, 64), routing=grouped),
        "everything": _with_everything(24, 128, 64, sigmoid),
    }
    for name, layer in layers.items():
        workspace = Workspace(layer, 900, page=new_page(_DEVICE))
        for tokens in (1, 3, 40, 200, 900):
            x = random_tokens(layer, tokens)
            form = workspace.form(layer, tokens)
            yield _compare(f"{name}, {tokens} tokens, {form}", layer, x, fused_moe(x, layer, workspace))
            if tokens > 1:
                x[1, 5] = float("nan")
                y = fused_moe(x, layer, workspace)
                assert y[1].isnan().all(), "what is made of no number is none"
                yield _compare(f"{name}, {tokens} tokens with a NaN, {form}", layer, x, y)


def _with_everything(experts: int, hidden: int, intermediate: int, routing: RoutingRule) -> MoELayer:
    """Two shared experts behind a gate, every bias, and a clamped activation."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=_DEVICE).bfloat16()

    return MoELayer(
        draw(experts, hidden) / hidden**0.5,
        draw(experts + 2, 2 * intermediate, hidden) / hidden**0.5,
        draw(experts + 2, hidden, intermediate) / intermediate**0.5,
        routing,
        activation=SwiGLU(1.702, 1.0, 1.0),
        router_bias=draw(experts),
        correction_bias=0.2 * draw(experts).float(),
        gate_up_bias=draw(experts + 2, 2 * intermediate),
        down_bias=draw(experts + 2, hidden),
        shared_experts=2,
        shared_gate=draw(hidden) / hidden**0.5,
    )


_PARTS = {"one-token": _one_token, "forms": _forms, "rules": _rules, "hopper": _hopper}


def main() -> None:
    parser = argparse.ArgumentParser(description="Launches for compute-sanitizer to look at.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(_PARTS)}; all without one")
    parts = parser.parse_args().parts or list(_PARTS)
    if unknown := [part for part in parts if part not in _PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; parts are {', '.join(_PARTS)}")
    torch.manual_seed(0)
    for part in parts:
        for line in _PARTS[part]():
            print(line, flush=True)
    print("all right")


if __name__ == "__main__":
    main()
