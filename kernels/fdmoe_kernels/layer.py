"""One MoE layer: its weights as the kernels want them, and its rules.

Legend of all shapes in this package: T tokens, E routed experts, S shared experts, K chosen per token, H hidden size,
I intermediate size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch

from fdmoe_kernels.activation import SILU, SwiGLU
from fdmoe_kernels.routing import RoutingRule

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class MoELayer:
    """The weights of one MoE layer, contiguous, of one dtype, on one device.

    router          [E, H]         logits = x @ router^T + router_bias
    gate_up         [E+S, 2I, H]   rows 0..I-1 of an expert are its gate projection, rows I..2I-1 its up projection
    down            [E+S, H, I]
    router_bias     [E]
    correction_bias [E] float32    added to the scores for the choice of experts only
    gate_up_bias    [E+S, 2I]
    down_bias       [E+S, H]
    shared_gate     [H]            the shared experts' weight is sigmoid(x @ shared_gate); without it, 1

    expert_e(x) = activation(x @ gate_e^T + gate_bias_e, x @ up_e^T + up_bias_e) @ down_e^T + down_bias_e
    y = sum over the chosen experts of weight_e * expert_e(x), then over the shared ones of shared_weight * expert_s(x)

    The last `shared_experts` (S) of the experts are shared: every token goes to each of them. A shared expert of a
    larger intermediate size is stored as several such experts, each a slice of I of its rows, padded with zeros: their
    sum is the whole one (`pack` does it). routing.scaling does not apply to them.

    Two layers are equal only if they are one: their tensors may be large, and are not compared.

    Without shared experts this is transformers' own layout, so its modules can lend their parameters without a copy.
    Raises ValueError when a shape, dtype, device or rule does not fit the others.
    """

    router: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    routing: RoutingRule
    _: KW_ONLY
    activation: SwiGLU = SILU
    router_bias: torch.Tensor | None = None
    correction_bias: torch.Tensor | None = None
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    shared_experts: int = 0
    shared_gate: torch.Tensor | None = None
    _listed: tuple[torch.Tensor, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # the class is frozen; a dictionary made for each launch would take longer than the look at the addresses
        object.__setattr__(self, "_listed", tuple(self.tensors.values()))
        if self.router.ndim != 2 or self.gate_up.ndim != 3 or self.down.ndim != 3:
            raise ValueError(
                "router, gate_up and down have shapes "
                f"{tuple(self.router.shape)}, {tuple(self.gate_up.shape)}, {tuple(self.down.shape)}; "
                "[E, H], [E + S, 2I, H] and [E + S, H, I] are needed"
            )
        if self.shared_experts < 0:
            raise ValueError(f"shared_experts is {self.shared_experts}; 0 or more are allowed")
        if self.shared_gate is not None and not self.shared_experts:
            raise ValueError("shared_gate is given and shared_experts is 0; a gate needs an expert behind it")
        experts, hidden = self.router.shape
        intermediate = self.down.shape[2]
        if min(experts, hidden, intermediate) < 1:
            raise ValueError(f"(E, H, I) = {(experts, hidden, intermediate)}; each must be at least 1")
        total = experts + self.shared_experts
        for name, tensor, shape in (
            ("gate_up", self.gate_up, (total, 2 * intermediate, hidden)),
            ("down", self.down, (total, hidden, intermediate)),
            ("router_bias", self.router_bias, (experts,)),
            ("correction_bias", self.correction_bias, (experts,)),
            ("gate_up_bias", self.gate_up_bias, (total, 2 * intermediate)),
            ("down_bias", self.down_bias, (total, hidden)),
            ("shared_gate", self.shared_gate, (hidden,)),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; router [{experts}, {hidden}], down "
                    f"[.., .., {intermediate}] and {self.shared_experts} shared experts ask for {shape}"
                )
        self._check_storage()
        self.routing.check(experts)

    def _check_storage(self) -> None:
        if self.gate_up.dtype not in DTYPES:
            raise ValueError(f"gate_up is {self.gate_up.dtype}; all weights are of one of {DTYPES}")
        for name in ("router", "gate_up", "down", "router_bias", "gate_up_bias", "down_bias", "shared_gate"):
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != self.gate_up.dtype:
                raise ValueError(f"{name} is {tensor.dtype}; gate_up is {self.gate_up.dtype}, and all must be alike")
        if self.correction_bias is not None and self.correction_bias.dtype != torch.float32:
            raise ValueError(f"correction_bias is {self.correction_bias.dtype}; torch.float32 is needed")
        for name, tensor in self.tensors.items():
            if tensor.device != self.gate_up.device:
                raise ValueError(f"{name} is on {tensor.device}; gate_up is on {self.gate_up.device}")
            if not tensor.is_contiguous():
                raise ValueError(f"{name} has strides {tensor.stride()}; contiguous weights are needed")

    @classmethod
    def pack(
        cls,
        router: torch.Tensor,
        gates: Sequence[torch.Tensor],
        ups: Sequence[torch.Tensor],
        downs: Sequence[torch.Tensor],
        routing: RoutingRule,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        activation: SwiGLU = SILU,
        router_bias: torch.Tensor | None = None,
        correction_bias: torch.Tensor | None = None,
        gate_bias: torch.Tensor | None = None,
        up_bias: torch.Tensor | None = None,
        down_bias: torch.Tensor | None = None,
        shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
        shared_gate: torch.Tensor | None = None,
        out: Mapping[str, torch.Tensor] | None = None,
    ) -> MoELayer:
        """Copy weights one expert at a time into the packed layout on `device`.

        gates, ups   [I, H] per routed expert; gate_bias, up_bias [E, I], both or neither
        downs        [H, I] per routed expert; down_bias [E, H]
        shared       gate [Is, H], up [Is, H] and down [H, Is] of the shared expert, of any intermediate size; it
                     becomes ceil(Is / I) experts without biases
        shared_gate  [H] or [1, H]
        out          memory for all `tensors` of the layer, whatever is in it; without it, it is allocated. Its names,
                     shapes and dtypes are those of the same layer packed on the device "meta", which copies nothing

        Raises ValueError as MoELayer does, for gates, ups and downs that are none or not equally many, for a tensor of
        any other shape than these (the gates say what E is, and the first of them I and H), for one of gate_bias and
        up_bias without the other, and for an `out` of other names, shapes, dtypes or device.
        """
        if (gate_bias is None) != (up_bias is None):
            half, absent = ("gate_bias", "up_bias") if up_bias is None else ("up_bias", "gate_bias")
            raise ValueError(f"{half} is given without {absent}; both or neither are needed")
        gates, ups, downs = list(gates), list(ups), list(downs)  # each is asked for once: it may come from a file
        _check_experts(gates, ups, downs)
        experts, (intermediate, hidden) = len(gates), gates[0].shape
        if shared is not None:
            _check_shared(*shared, hidden)
        gate_shape = (hidden,) if shared_gate is None or shared_gate.ndim == 1 else (1, hidden)
        _check_shapes({
            "router": (router, (experts, hidden)), "shared_gate": (shared_gate, gate_shape),
            "router_bias": (router_bias, (experts,)), "correction_bias": (correction_bias, (experts,)),
            "gate_bias": (gate_bias, (experts, intermediate)), "up_bias": (up_bias, (experts, intermediate)),
            "down_bias": (down_bias, (experts, hidden)),
        })  # fmt: skip
        routed = list(zip(gates, ups, downs, strict=True))
        slices = [] if shared is None else _slices(*shared, intermediate)
        total = len(routed) + len(slices)
        whole = {
            "router": router, "router_bias": router_bias, "correction_bias": correction_bias,
            "gate_up_bias": _stacked(len(slices), gate_bias, up_bias), "down_bias": _stacked(len(slices), down_bias),
            "shared_gate": None if shared_gate is None else shared_gate.flatten(),
        }  # fmt: skip
        given = {name: tensor for name, tensor in whole.items() if tensor is not None}
        shapes = {name: tuple(tensor.shape) for name, tensor in given.items()}
        shapes |= {"gate_up": (total, 2 * intermediate, hidden), "down": (total, hidden, intermediate)}
        dtypes = {name: torch.float32 if name == "correction_bias" else dtype for name in shapes}
        if out is None:
            out = {name: torch.empty(shapes[name], device=device, dtype=dtypes[name]) for name in shapes}
        else:
            _check_memory(out, shapes, dtypes, torch.device(device))
        for name, tensor in given.items():
            out[name].copy_(tensor)
        for gate_up, down, (gate, up, projection) in zip(out["gate_up"], out["down"], routed + slices, strict=True):
            size = gate.shape[0]
            _copy_padded(gate_up[:intermediate], gate, size)
            _copy_padded(gate_up[intermediate:], up, size)
            _copy_padded(down.T, projection.T, size)
        return cls(**out, routing=routing, activation=activation, shared_experts=len(slices))

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors that the layer has, by name."""
        tensors = {
            "router": self.router, "gate_up": self.gate_up, "down": self.down,
            "router_bias": self.router_bias, "correction_bias": self.correction_bias,
            "gate_up_bias": self.gate_up_bias, "down_bias": self.down_bias, "shared_gate": self.shared_gate,
        }  # fmt: skip
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @property
    def addresses(self) -> tuple[int, ...]:
        """Of all tensors, as they are now: a module that went to another device and back has its weights elsewhere, and
        the tensors are the same objects. 0.3 us for four."""
        return tuple(map(torch.Tensor.data_ptr, self._listed))

    @property
    def experts(self) -> int:
        """E: the routed experts."""
        return self.router.shape[0]

    @property
    def all_experts(self) -> int:
        """E + S."""
        return self.gate_up.shape[0]

    @property
    def entries_per_token(self) -> int:
        """K + S: the experts that compute each token."""
        return self.routing.top_k + self.shared_experts

    @property
    def hidden_size(self) -> int:
        return self.router.shape[1]

    @property
    def intermediate_size(self) -> int:
        return self.down.shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.gate_up.dtype

    @property
    def device(self) -> torch.device:
        return self.gate_up.device

    def check_input(self, x: torch.Tensor) -> None:
        """Raises ValueError unless `x` is [T, H], contiguous, and of the weights' dtype and device."""
        if x.ndim != 2 or x.shape[1] != self.hidden_size:
            raise ValueError(f"x has shape {tuple(x.shape)}; [T, {self.hidden_size}] is needed")
        if x.dtype != self.dtype or x.device != self.device:
            raise ValueError(f"x is {x.dtype} on {x.device}; the weights are {self.dtype} on {self.device}")
        if not x.is_contiguous():
            raise ValueError(f"x has strides {x.stride()}; a contiguous [T, {self.hidden_size}] is needed")


def check_output(out: torch.Tensor, x: torch.Tensor) -> None:
    """Raises ValueError unless `out` has the shape, dtype and device of x [T, H], and is contiguous."""
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        raise ValueError(
            f"out is {out.dtype} {tuple(out.shape)} on {out.device}; "
            f"like x, {x.dtype} {tuple(x.shape)} on {x.device}, is needed"
        )
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}; a contiguous [T, {x.shape[1]}] is needed")


_Expert = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _check_experts(gates: Sequence[torch.Tensor], ups: Sequence[torch.Tensor], downs: Sequence[torch.Tensor]) -> None:
    """Raises ValueError unless they are as many, and of one [I, H], [I, H] and [H, I]."""
    if not len(gates) == len(ups) == len(downs) > 0:
        raise ValueError(
            f"there are {len(gates)} gates, {len(ups)} ups and {len(downs)} downs; as many of each, and at least 1, "
            "are needed"
        )
    shape = tuple(gates[0].shape)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"gates[0] has shape {shape}; [I, H], each at least 1, is needed")
    for name, tensors, needed in (("gates", gates, shape), ("ups", ups, shape), ("downs", downs, shape[::-1])):
        _check_shapes({f"{name}[{expert}]": (tensor, needed) for expert, tensor in enumerate(tensors)})


def _check_shared(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, hidden: int) -> None:
    """Raises ValueError unless they are [Is, H], [Is, H] and [H, Is]."""
    shape = tuple(gate.shape)
    if len(shape) != 2 or shape[0] < 1 or shape[1] != hidden:
        raise ValueError(f"shared's gate has shape {shape}; [Is, {hidden}], Is at least 1, is needed")
    _check_shapes({"shared's up": (up, shape), "shared's down": (down, shape[::-1])})


def _check_shapes(tensors: Mapping[str, tuple[torch.Tensor | None, tuple[int, ...]]]) -> None:
    """Raises ValueError unless each tensor that is there has the shape beside it."""
    for name, (tensor, needed) in tensors.items():
        if tensor is not None and tuple(tensor.shape) != needed:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; {needed} is needed")


def _slices(gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, intermediate: int) -> list[_Expert]:
    """gate and up [Is, H] and down [H, Is] as experts of at most I rows, the last with what is left."""
    parts = (torch.split(gate, intermediate), torch.split(up, intermediate), torch.split(down, intermediate, dim=1))
    return list(zip(*parts, strict=True))


def _stacked(slices: int, *parts: torch.Tensor | None) -> torch.Tensor | None:
    """Biases of the routed experts side by side, and zeros for the shared ones."""
    given = [part for part in parts if part is not None]
    if not given:
        return None
    routed = torch.cat(given, dim=1)
    return torch.cat([routed, routed.new_zeros(slices, routed.shape[1])])


def _copy_padded(to: torch.Tensor, values: torch.Tensor, size: int) -> None:
    """The first `size` rows become `values`, the others 0."""
    to[:size].copy_(values)
    to[size:].zero_()


def _check_memory(
    tensors: Mapping[str, torch.Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, torch.dtype],
    device: torch.device,
) -> None:
    """Raises ValueError unless `tensors` are memory of these shapes and dtypes on `device`."""
    if tensors.keys() != shapes.keys():
        raise ValueError(f"out has {', '.join(sorted(tensors))}; the layer has {', '.join(sorted(shapes))}")
    for name, tensor in tensors.items():
        found = f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device.type}"
        needed = f"{shapes[name]} {dtypes[name]} on {device.type}"
        if found != needed:
            raise ValueError(f"out's {name} is {found}; {needed} is needed")
