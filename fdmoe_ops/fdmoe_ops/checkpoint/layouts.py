"""How a checkpoint stores one MoE layer: the names and shapes of its tensors, and how they become views per expert.

Legend of all shapes: E experts, H hidden size, I intermediate size, Is intermediate size of the shared expert. In the
templates, {layer} is the index of the decoder layer and {expert} the index of the expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

View = Callable[[str], torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of a MoE layer; all MoE layers of a model have the same. `shared` is Is, 0 without a shared expert."""

    hidden: int
    intermediate: int
    experts: int
    shared: int = 0


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One MoE layer as views of the mapped files: router [E, H]; per expert gate [I, H], up [I, H] and down [H, I].

    router_bias and correction_bias [E]; gate_bias, up_bias [E, I]; down_bias [E, H]; shared: gate [Is, H], up [Is, H]
    and down [H, Is] of the shared expert; shared_gate [1, H]. What a model does not have is None.

    The mapping is private: the files cannot be changed through the views. It lives as long as a view of it does.
    """

    router: torch.Tensor
    gates: tuple[torch.Tensor, ...]
    ups: tuple[torch.Tensor, ...]
    downs: tuple[torch.Tensor, ...]
    router_bias: torch.Tensor | None = None
    correction_bias: torch.Tensor | None = None
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None
    shared: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    shared_gate: torch.Tensor | None = None


class Layout(Protocol):
    """A way of storing a layer."""

    def shapes(self, layer: int, shape: LayerShape) -> Shapes:
        """The names of all tensors of the layer, and the shape that each must have; an expert's stands last."""

    def read(self, layer: int, shape: LayerShape, view: View) -> LayerTensors:
        """The layer, where `view` maps the tensor of a name."""


@dataclass(frozen=True, slots=True)
class Router:
    """What stands beside the routed experts: router [E, H], and by model correction_bias [E], the three projections of
    a shared expert, and shared_gate [1, H]."""

    weight: str
    correction_bias: str | None = None
    shared: tuple[str, str, str] | None = None
    shared_gate: str | None = None

    def shapes(self, layer: int, shape: LayerShape) -> Shapes:
        shapes: Shapes = {self.weight: (shape.experts, shape.hidden)}
        if self.correction_bias is not None:
            shapes[self.correction_bias] = (shape.experts,)
        if self.shared is not None:
            wide = (shape.shared, shape.hidden)
            shapes |= zip(self.shared, (wide, wide, wide[::-1]), strict=True)
        if self.shared_gate is not None:
            shapes[self.shared_gate] = (1, shape.hidden)
        return {name.format(layer=layer): size for name, size in shapes.items()}

    def read(
        self,
        layer: int,
        view: View,
        gates: tuple[torch.Tensor, ...],
        ups: tuple[torch.Tensor, ...],
        downs: tuple[torch.Tensor, ...],
    ) -> LayerTensors:
        """The layer with these experts."""

        def found(name: str) -> torch.Tensor:
            return view(name.format(layer=layer))

        shared = None
        if self.shared is not None:
            gate, up, down = map(found, self.shared)
            shared = (gate, up, down)
        return LayerTensors(
            found(self.weight),
            gates,
            ups,
            downs,
            correction_bias=None if self.correction_bias is None else found(self.correction_bias),
            shared=shared,
            shared_gate=None if self.shared_gate is None else found(self.shared_gate),
        )


@dataclass(frozen=True, slots=True)
class PerExpert:
    """One tensor per expert and projection: gate and up [I, H], down [H, I]."""

    router: Router
    gate: str
    up: str
    down: str

    def shapes(self, layer: int, shape: LayerShape) -> Shapes:
        shapes = self.router.shapes(layer, shape)
        for expert in range(shape.experts):
            shapes[self.gate.format(layer=layer, expert=expert)] = (shape.intermediate, shape.hidden)
            shapes[self.up.format(layer=layer, expert=expert)] = (shape.intermediate, shape.hidden)
            shapes[self.down.format(layer=layer, expert=expert)] = (shape.hidden, shape.intermediate)
        return shapes

    def read(self, layer: int, shape: LayerShape, view: View) -> LayerTensors:
        def experts(template: str) -> tuple[torch.Tensor, ...]:
            return tuple(view(template.format(layer=layer, expert=expert)) for expert in range(shape.experts))

        return self.router.read(layer, view, experts(self.gate), experts(self.up), experts(self.down))


@dataclass(frozen=True, slots=True)
class Stacked:
    """The layout of transformers 5's modules: gate_up [E, 2I, H], gate rows first; down [E, H, I]."""

    router: Router
    gate_up: str
    down: str

    def shapes(self, layer: int, shape: LayerShape) -> Shapes:
        return self.router.shapes(layer, shape) | {
            self.gate_up.format(layer=layer): (shape.experts, 2 * shape.intermediate, shape.hidden),
            self.down.format(layer=layer): (shape.experts, shape.hidden, shape.intermediate),
        }

    def read(self, layer: int, shape: LayerShape, view: View) -> LayerTensors:
        gate_up = view(self.gate_up.format(layer=layer))
        gates, ups = gate_up[:, : shape.intermediate], gate_up[:, shape.intermediate :]
        down = view(self.down.format(layer=layer))
        return self.router.read(layer, view, gates.unbind(), ups.unbind(), down.unbind())


@dataclass(frozen=True, slots=True)
class Interleaved:
    """gpt-oss: weights as x @ weight takes them, gate and up by turns, and biases on everything.

    router [E, H] and router_bias [E]; gate_up [E, H, 2I] and gate_up_bias [E, 2I], columns gate 0, up 0, gate 1, ..;
    down [E, I, H] and down_bias [E, H].
    """

    router: str
    router_bias: str
    gate_up: str
    gate_up_bias: str
    down: str
    down_bias: str

    def shapes(self, layer: int, shape: LayerShape) -> Shapes:
        shapes: Shapes = {
            self.router: (shape.experts, shape.hidden),
            self.router_bias: (shape.experts,),
            self.gate_up_bias: (shape.experts, 2 * shape.intermediate),
            self.down_bias: (shape.experts, shape.hidden),
            self.gate_up: (shape.experts, shape.hidden, 2 * shape.intermediate),
            self.down: (shape.experts, shape.intermediate, shape.hidden),
        }
        return {name.format(layer=layer): size for name, size in shapes.items()}

    def read(self, layer: int, shape: LayerShape, view: View) -> LayerTensors:  # noqa: ARG002
        def found(name: str) -> torch.Tensor:
            return view(name.format(layer=layer))

        gate_up, gate_up_bias = found(self.gate_up).mT, found(self.gate_up_bias)
        return LayerTensors(
            found(self.router),
            gate_up[:, ::2].unbind(),
            gate_up[:, 1::2].unbind(),
            found(self.down).mT.unbind(),
            router_bias=found(self.router_bias),
            gate_bias=gate_up_bias[:, ::2],
            up_bias=gate_up_bias[:, 1::2],
            down_bias=found(self.down_bias),
        )
