"""A Hugging Face model directory, seen as its MoE layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.routing import RoutingRule
from fdmoe_ops.checkpoint.config import MoEConfig, read_config
from fdmoe_ops.checkpoint.errors import ConfigError, LayerIndexError, UnsupportedDtypeError, WrongShapeError
from fdmoe_ops.checkpoint.layouts import LayerShape, LayerTensors, Layout
from fdmoe_ops.checkpoint.shards import Shards

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened model directory. Everything raises CheckpointError where the directory is at fault."""

    path: Path
    config: MoEConfig
    shards: Shards

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Read config.json and find the files of weights; no tensor is checked yet (`check` does)."""
        if not path.is_dir():
            raise ConfigError(f"{path}: not a directory; a Hugging Face model directory is needed")
        return cls(path, read_config(path / "config.json"), Shards.find(path))

    @property
    def name(self) -> str:
        """The directory's name."""
        return self.path.absolute().name

    @property
    def architecture(self) -> str:
        """As in config.json, such as Qwen3MoeForCausalLM."""
        return self.config.architecture.name

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Indices of the decoder layers that are MoE, ascending; at least one."""
        return self.config.moe_layers

    @property
    def shape(self) -> LayerShape:
        return self.config.shape

    @property
    def routing(self) -> RoutingRule:
        return self.config.routing

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the experts of the first MoE layer are stored."""
        first = self.moe_layers[0]
        # the router stands first in a layout, and some models keep it in float32
        expert = list(self._layout(first).shapes(first, self.shape))[-1]
        return self._stored_dtype(expert)

    def check(self, indices: Iterable[int]) -> None:
        """Check that every tensor of these layers is there, with its shape and a type that can be served.

        Only headers are read: the 18 480 tensors of 48 layers with 128 experts take 0.15 s.
        """
        for index in indices:
            self._check_index(index)
            for name, expected in self._layout(index).shapes(index, self.shape).items():
                self._stored_dtype(name)
                found = self.shards.header(name).shape
                if found != expected:
                    raise WrongShapeError(
                        f"{self.shards.locate(name).path}: tensor {name} has shape {list(found)}; "
                        f"config.json asks for {list(expected)}"
                    )

    def layer(self, index: int) -> LayerTensors:
        """The tensors of decoder layer `index`, checked, as views of the mapped files: nothing is copied."""
        self.check((index,))
        return self._layout(index).read(index, self.shape, self.shards.view)

    def load(
        self,
        index: int,
        device: torch.device | str,
        dtype: torch.dtype,
        out: Mapping[str, torch.Tensor] | None = None,
    ) -> MoELayer:
        """Decoder layer `index` on `device` in `dtype`, copied there expert by expert into the kernels' layout.

        On the device "meta" nothing is read but headers: such a layer tells what memory it takes. `out` is memory for
        its tensors (MoELayer.pack); without it, it is allocated.
        """
        tensors = self.layer(index)
        return MoELayer.pack(
            tensors.router,
            tensors.gates,
            tensors.ups,
            tensors.downs,
            self.routing,
            device=device,
            dtype=dtype,
            activation=self.config.activation,
            router_bias=tensors.router_bias,
            correction_bias=tensors.correction_bias,
            gate_bias=tensors.gate_bias,
            up_bias=tensors.up_bias,
            down_bias=tensors.down_bias,
            shared=tensors.shared,
            shared_gate=tensors.shared_gate,
            out=out,
        )

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.config.decoder_layers:
            raise LayerIndexError(
                f"{self.path}: there is no layer {index}; decoder layers are 0 to {self.config.decoder_layers - 1}"
            )
        if index not in self.moe_layers:
            listed = ", ".join(map(str, self.moe_layers))
            raise LayerIndexError(f"{self.path}: layer {index} has no experts; layers with experts are {listed}")

    def _layout(self, index: int) -> Layout:
        """The layout that most of the layer's tensors are found for; the published one if none is."""

        def found(layout: Layout) -> int:
            return sum(name in self.shards for name in layout.shapes(index, self.shape))

        return max(self.config.architecture.layouts, key=found)

    def _stored_dtype(self, name: str) -> torch.dtype:
        stored = self.shards.header(name).dtype
        if stored not in DTYPES:
            raise UnsupportedDtypeError(
                f"{self.shards.locate(name).path}: tensor {name} is stored as {stored}; "
                f"{', '.join(DTYPES)} can be served"
            )
        return DTYPES[stored]
