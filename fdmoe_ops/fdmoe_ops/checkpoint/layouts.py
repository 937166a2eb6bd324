"""How a checkpoint stores one MoE layer: the names and shapes of its tensors, and how they become views per expert.

Legend of all shapes: E experts, H hidden size, I intermediate size. In the templates, {layer} is the index of the
decoder layer and {expert} the index of the expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The sizes of a MoE layer; all MoE layers of a model have the same."""

    hidden: int
    intermediate: int
    experts: int


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One MoE layer as views of the mapped files: router [E, H]; per expert gate [I, H], up [I, H] and down [H, I].

    The mapping is private: the files cannot be changed through the views. It lives as long as a view of it does.
    """

    router: torch.Tensor
    gates: tuple[torch.Tensor, ...]
    ups: tuple[torch.Tensor, ...]
    downs: tuple[torch.Tensor, ...]


class Layout(Protocol):
    """A way of storing a layer."""

    def shapes(self, layer: int, shape: LayerShape) -> dict[str, tuple[int, ...]]:
        """The names of all tensors of the layer, and the shape that each must have."""

    def read(self, layer: int, shape: LayerShape, view: Callable[[str], torch.Tensor]) -> LayerTensors:
        """The layer, where `view` maps the tensor of a name."""


@dataclass(frozen=True, slots=True)
class PerExpert:
    """One tensor per expert and projection: gate and up [I, H], down [H, I]; router [E, H]."""

    router: str
    gate: str
    up: str
    down: str

    def shapes(self, layer: int, shape: LayerShape) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {self.router.format(layer=layer): (shape.experts, shape.hidden)}
        for expert in range(shape.experts):
            shapes[self.gate.format(layer=layer, expert=expert)] = (shape.intermediate, shape.hidden)
            shapes[self.up.format(layer=layer, expert=expert)] = (shape.intermediate, shape.hidden)
            shapes[self.down.format(layer=layer, expert=expert)] = (shape.hidden, shape.intermediate)
        return shapes

    def read(self, layer: int, shape: LayerShape, view: Callable[[str], torch.Tensor]) -> LayerTensors:
        def experts(template: str) -> tuple[torch.Tensor, ...]:
            return tuple(view(template.format(layer=layer, expert=expert)) for expert in range(shape.experts))

        router = view(self.router.format(layer=layer))
        return LayerTensors(router, experts(self.gate), experts(self.up), experts(self.down))


@dataclass(frozen=True, slots=True)
class Stacked:
    """The layout of transformers 5's modules: gate_up [E, 2I, H], gate rows first; down [E, H, I]; router [E, H]."""

    router: str
    gate_up: str
    down: str

    def shapes(self, layer: int, shape: LayerShape) -> dict[str, tuple[int, ...]]:
        return {
            self.router.format(layer=layer): (shape.experts, shape.hidden),
            self.gate_up.format(layer=layer): (shape.experts, 2 * shape.intermediate, shape.hidden),
            self.down.format(layer=layer): (shape.experts, shape.hidden, shape.intermediate),
        }

    def read(self, layer: int, shape: LayerShape, view: Callable[[str], torch.Tensor]) -> LayerTensors:
        gate_up = view(self.gate_up.format(layer=layer))
        return LayerTensors(
            router=view(self.router.format(layer=layer)),
            gates=gate_up[:, : shape.intermediate].unbind(),
            ups=gate_up[:, shape.intermediate :].unbind(),
            downs=view(self.down.format(layer=layer)).unbind(),
        )
