"""Launches the portable form of the kernel: Triton, on any device that Triton has, and in its interpreter.

Triton finds the build of a launch by all of its arguments, each time, which takes longer than the whole layer of a few
tokens. So it is asked once for each build and layer of a workspace, and what it has found is launched from then on.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import triton
from triton.compiler import CompiledKernel

from fdmoe_kernels import _fused_kernel as kernel
from fdmoe_kernels.faults import Fault
from fdmoe_kernels.hardware import interpreted, multiprocessors
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import Routing, Scores
from fdmoe_kernels.tiles import Precision, Tiles, choose_tokens, route_lanes, tiles_for
from fdmoe_kernels.workspace import Workspace

_NAMES = tuple(inspect.signature(kernel.moe_layer_kernel.fn).parameters)
# the arguments that each launch has of its own
_OWN = ("x", "y", "chosen", "given", "T", "row_tiles_bound", "route_steps")
_OWN_PLACES = tuple(_NAMES.index(name) for name in _OWN)


class _Found(NamedTuple):
    """compiled   the build that Triton has found
    addresses  of the layer's tensors at that time: elsewhere they may be aligned otherwise, and need another one
    arguments  of any launch, in their order; tensors by their addresses, but for the page, which may be the host's
    """

    compiled: CompiledKernel
    addresses: tuple[int, ...]
    arguments: tuple[Any, ...]


# the device, what is compiled for it, and what else Triton makes builds by: ROCm's, rows that 32 bits cannot reach
_Key = tuple[int, Tiles, Precision, Fault, torch.dtype | None, bool]
_found: WeakKeyDictionary[Workspace, WeakKeyDictionary[MoELayer, dict[_Key, _Found]]] = WeakKeyDictionary()


def launch(
    x: torch.Tensor,
    out: torch.Tensor,
    layer: MoELayer,
    workspace: Workspace,
    *,
    routing: Routing | None,
    precision: Precision,
    programs: int,
    fault: Fault,
) -> None:
    """One launch for x [T, H], T at least 1, into out [T, H]; fused.py has checked the arguments.

    Raises ValueError for a layer on a device, or of a dtype, that Triton does not serve in this process.
    """
    tokens = x.shape[0]
    # a faulty build is made once, for the first row for several tokens, which serves any number of them
    tiles = tiles_for(layer, tokens if fault is Fault.NONE else 2, precision)
    grid = programs or multiprocessors(layer.device) * tiles.programs
    if workspace.page is not None:
        grid = min(grid, workspace.slots)
    experts, weights = (None, None) if routing is None else (routing.experts, routing.weights)
    own = (
        x, out, experts, weights, tokens, workspace.row_tiles_bound(tokens, tiles.rows),
        _route_steps(layer, tokens, tiles, workspace.logit_rows),
    )  # fmt: skip
    device = torch.cuda.current_device() if layer.device.type == "cuda" else -1
    key = (device, tiles, precision, fault, None if experts is None else experts.dtype, x.nbytes >= 2**31)
    layers = _found.get(workspace)
    if layers is None:
        layers = _found[workspace] = WeakKeyDictionary()
    found = layers.get(layer)
    if found is None:
        found = layers[layer] = {}
    known, addresses = found.get(key), layer.addresses
    if known is not None and known.addresses == addresses:
        arguments = list(known.arguments)
        for place, value in zip(_OWN_PLACES, own, strict=True):
            arguments[place] = _by_address(value)
        known.compiled[grid, 1, 1](*arguments)
        return
    _check_served(layer)  # here and not before: what was found once is served
    by_name = _arguments(layer, workspace, tiles, precision, fault) | dict(zip(_OWN, own, strict=True))
    compiled = kernel.moe_layer_kernel[grid,](**by_name, num_warps=tiles.warps, num_stages=tiles.stages)
    if isinstance(compiled, CompiledKernel):  # the interpreter compiles nothing
        kept = {name: value if name == "page" else _by_address(value) for name, value in by_name.items()}
        found[key] = _Found(compiled, addresses, tuple(kept[name] for name in _NAMES))


def _route_steps(layer: MoELayer, tokens: int, tiles: Tiles, logit_rows: int) -> int:
    """How many steps of a route tile's logits are a work item: fewer where there are CTAs without one. It must not
    depend on how many a launch has, for bits do on this."""
    steps = math.ceil(layer.hidden_size / tiles.route_depth)
    free = multiprocessors(layer.device) * tiles.programs // math.ceil(tokens / tiles.route_tokens)
    return math.ceil(steps / max(1, min(tiles.route_splits, free, logit_rows // tokens)))


def _check_served(layer: MoELayer) -> None:
    """Triton itself would say that it has no driver, and its interpreter's bfloat16 is off by a factor of 1e10."""
    if interpreted():
        if layer.dtype == torch.bfloat16:
            raise ValueError(
                f"the layer is {layer.dtype}, which Triton's interpreter computes wrongly; torch.float32 or "
                "torch.float16 is allowed there"
            )
    elif layer.device.type != "cuda":
        raise ValueError(
            f"the layer is on {layer.device}; a GPU, or TRITON_INTERPRET=1 before the first import of triton, is needed"
        )


def _by_address(value: Any) -> Any:
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


def _arguments(
    layer: MoELayer, workspace: Workspace, tiles: Tiles, precision: Precision, fault: Fault
) -> dict[str, Any]:
    """Those that launches have in common."""
    rule = layer.routing
    return {
        "router": layer.router,
        "router_bias": layer.router_bias,
        "correction_bias": layer.correction_bias,
        "gate_up": layer.gate_up,
        "gate_up_bias": layer.gate_up_bias,
        "down": layer.down,
        "down_bias": layer.down_bias,
        "shared_gate": layer.shared_gate,
        "logits": workspace.logits,
        "lists": workspace.lists,
        "weights": workspace.weights,
        "norms": workspace.norms,
        "act": workspace.act,
        "part": workspace.part,
        "control": workspace.control,
        "totals": workspace.totals,
        "page": workspace.totals if workspace.page is None else workspace.page,
        "capacity": workspace.max_tokens,
        "H": layer.hidden_size,
        "I": layer.intermediate_size,
        "E": layer.experts,
        "K": rule.top_k,
        "S": layer.shared_experts,
        "SIGMOID": rule.scores is Scores.SIGMOID,
        "RENORMALIZE": rule.renormalize,
        "SCALING": rule.scaling,
        "GROUPS": rule.groups,
        "TOP_GROUPS": rule.top_groups,
        "GROUP_SCORES": rule.group_scores,
        "ALPHA": layer.activation.alpha,
        "LIMIT": layer.activation.limit,
        "UP_OFFSET": layer.activation.up_offset,
        "EXPERT_LANES": triton.next_power_of_2(layer.all_experts),
        "GROUP_LANES": triton.next_power_of_2(rule.groups),
        "K_LANES": triton.next_power_of_2(rule.top_k),
        "ROUTE_TOKENS": tiles.route_tokens,
        "ROUTE_EXPERTS": route_lanes(layer.experts),
        "ROUTE_DEPTH": tiles.route_depth,
        "ROUTE_SPLITS": tiles.route_splits,
        "CHOOSE_TOKENS": choose_tokens(tiles, layer.experts),
        "ROWS": tiles.rows,
        "UP_COLUMNS": tiles.up_columns,
        "UP_DEPTH": tiles.up_depth,
        "DOWN_COLUMNS": tiles.down_columns,
        "DOWN_DEPTH": tiles.down_depth,
        "COMBINE_TOKENS": tiles.combine_tokens,
        "COMBINE_COLUMNS": tiles.combine_columns,
        "PRECISION": precision,
        "POLL": 1 if interpreted() else 64,
        "BEATS": workspace.page is not None,
        "FAULT": int(fault),
    }
