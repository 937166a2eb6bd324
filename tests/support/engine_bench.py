"""A worker's engine over one small layer, with the memory around it."""

from __future__ import annotations

from pathlib import Path

import torch
from moe_layers import INTERPRETER, random_layer

from fdmoe_ops.worker.engine import Engine
from fdmoe_watchdog.messages import Segment
from fdmoe_watchdog.page import Page

NAME = "m/layers.0"


class EngineBench:
    """One layer, an arena of 64 KiB, and a page with two slots."""

    def __init__(self, directory: Path) -> None:
        self.layer = random_layer(8, 64, 32, 2, place=INTERPRETER)
        self.arena_path = directory / "arena"
        self.arena_path.write_bytes(bytes(65536))
        self.arena = torch.from_file(str(self.arena_path), shared=True, size=65536, dtype=torch.uint8)
        self.page = Page.create(directory / "page", generation=1, slots=2)
        self.engine = Engine(
            {NAME: self.layer}, page=self.page, arena=self.arena_path, max_batch_tokens=16, programs=0
        )  # fmt: skip

    def put(self, x: torch.Tensor, offset: int) -> Segment:
        raw = x.contiguous().view(torch.uint8).flatten()
        self.arena[offset : offset + raw.numel()] = raw
        return Segment(offset, offset + 32768, x.shape[0])

    def answer(self, segment: Segment) -> torch.Tensor:
        raw = self.arena[segment.output_offset : segment.output_offset + segment.tokens * 256]
        return raw.view(torch.float32).view(segment.tokens, 64)
