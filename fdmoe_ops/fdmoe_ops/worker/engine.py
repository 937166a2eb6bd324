"""Both paths over the served layers on one device, with requests read from and answered into the arena."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fdmoe_kernels import Fault, MoELayer, Workspace, baseline_moe, fused_moe
from fdmoe_kernels.baseline import route
from fdmoe_kernels.comparing import compare, difference, tolerance
from fdmoe_kernels.tiles import token_counts_of_all_rows
from fdmoe_kernels.warmup import abort_drill, first_of_each_kind, load_faults, spread, warm_up_all
from fdmoe_ops.worker.errors import BaselineBroken
from fdmoe_ops.worker.tally import Tally
from fdmoe_watchdog import messages
from fdmoe_watchdog.counts import CountPage, counts_path
from fdmoe_watchdog.messages import Segment
from fdmoe_watchdog.page import Exit, Host, Identity, Launch, Line, Page


class BatchError(ValueError):
    """A batch that cannot be run as it is; the message names what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One batch on both paths: ||fused - baseline|| / ||baseline||, of all rows and of the one that is most apart. Both
    are None where there was nothing to compare, because no row of the baseline is finite, or each of them is excused:
    that proves nothing. `excused` rows differ, and either path may be right (comparing.close_calls)."""

    tokens: int
    relative_error: float | None
    row_error: float | None
    ok: bool
    excused: int = 0


@dataclass(frozen=True, slots=True)
class Fused:
    """The fused path's rows y [T, H], and whether each of their numbers is finite."""

    y: torch.Tensor
    finite: bool


class Engine:
    """The layers of one worker and the buffers they share.

    `page` is the worker's beat page, beside which its count page is made, and `arena` the shared-memory file of all
    requests; on a CUDA device both are pinned, so that the kernel writes its beats, and the copy engine its rows,
    straight into them. One batch at a time.

    fused_ns, baseline_ns  what the last run of each path took: on a GPU from its launch to its end on the host's clock,
                           on the CPU the time of the thread that is the device there, without what others took from it
    abort_s                the longest that a stalled launch of the warm-up took to end when it was told to
    """

    def __init__(
        self,
        layers: Mapping[str, MoELayer],
        *,
        page: Page,
        arena: Path,
        max_batch_tokens: int,
        programs: int,
    ) -> None:
        self.layers = dict(layers)
        self.max_batch_tokens = max_batch_tokens
        self._page = page
        self._programs = programs
        self._fault, self._faulty_launches = Fault.NONE, 0
        some = next(iter(self.layers.values()))
        self._device = some.device
        self._clock_ns = time.thread_time_ns if self._device.type == "cpu" else time.monotonic_ns
        self.fused_ns = self.baseline_ns = 0
        self.abort_s = 0.0
        self._indices = {name: index for index, name in enumerate(self.layers)}
        self._arena = torch.from_file(str(arena), shared=True, size=arena.stat().st_size, dtype=torch.uint8)
        words = torch.from_numpy(np.frombuffer(page.mapped, dtype=np.int64))
        if self._device.type == "cuda":
            _pin(self._arena)
            _pin(words)
        self._workspace = Workspace(some, max_batch_tokens, page=words, slots=page.slots)
        for name, layer in self.layers.items():
            if not self._workspace.fits(layer):
                raise BatchError(f"{name} differs in shape or type from the other layers; one worker serves one shape")
        shape = (max_batch_tokens, some.hidden_size)
        self._x = torch.zeros(shape, dtype=some.dtype, device=self._device)
        self._fused_y = torch.zeros_like(self._x)
        self._baseline_y = torch.zeros_like(self._x)
        self._peak = torch.zeros((), dtype=some.dtype, device=self._device)
        self._peak_here = torch.zeros((), dtype=some.dtype, pin_memory=self._device.type == "cuda")
        self._counts = CountPage(
            counts_path(page.path), generation=page.read(Line.IDENTITY, Identity.GENERATION),
            layers=len(self.layers), experts=some.experts,
        )  # fmt: skip
        self._tally = Tally(self._counts, self._workspace, self._synchronize)
        # as many rows as it takes to go to every expert
        rows = min(math.ceil(some.experts / some.routing.top_k), max_batch_tokens)
        generator = torch.Generator(device=self._device).manual_seed(0)
        self._proof_x = torch.empty_like(self._x[:rows]).normal_(generator=generator)
        self._proofs: dict[str, torch.Tensor] = {}
        self._to_prove: Iterator[str] = iter(())

    def warm_up(self, *, faults: bool) -> float:
        """Prove every layer, and that a launch can be stopped; returns the largest difference between the paths.

        Raises ProofError, BuildError or TritonError where the fused path is not to be had here; the baseline is warm
        all the same.
        """
        kinds = first_of_each_kind(self.layers.values())
        for kind in kinds:
            for tokens in token_counts_of_all_rows(kind, self.max_batch_tokens):
                baseline_moe(self._x[:tokens], kind)
        self._proofs = {name: self._proof_of(served) for name, served in self.layers.items()}
        # what looks at a difference is launched only when there is one
        name, layer = next(iter(self.layers.items()))
        rows = self._proofs[name]
        compare(2 * rows, rows, self._proof_x, layer)
        self._to_prove = itertools.cycle(self._proofs)
        self._measure_peak(self._fused_y[:1])
        worst = warm_up_all(self.layers.values(), self._workspace)
        self.abort_s = max(abort_drill(kind, self._workspace) for kind in kinds)
        # what follows an abort counts as no path's work: it must not have to load its kernels then
        self.expert_tokens(self._x[:1], name)
        if faults:
            load_faults(layer, self._workspace)
        self._page.write(Line.LAUNCH, Launch.BEGUN, self._workspace.launches)
        # what the warm-up has computed is not counted
        self._tally = Tally(self._counts, self._workspace, self._synchronize)
        return worst

    @property
    def launches(self) -> int:
        """The number of the last launch."""
        return self._workspace.launches

    def expert_tokens(self, x: torch.Tensor, name: str) -> tuple[int, ...]:
        """How many of these tokens go to each routed expert, by the baseline's router."""
        layer = self.layers[name]
        self._page.begin_wait()
        chosen = route(x, layer).experts.flatten()
        # a bincount would wait for the device to learn its length
        counts = torch.zeros(layer.experts, dtype=torch.int64, device=chosen.device)
        counts.scatter_add_(0, chosen, torch.ones_like(chosen))
        tokens: list[int] = counts.tolist()
        self._page.end_wait()
        return tuple(tokens)

    def arm(self, fault: messages.KernelFault, launches: int) -> None:
        """The next fused launches that serve have this fault."""
        self._fault, self._faulty_launches = Fault[fault.upper()], launches

    def check(self, batch: messages.Batch) -> MoELayer:
        """The batch's layer. Raises BatchError for one that this worker cannot run."""
        layer = self.layers.get(batch.layer)
        if layer is None:
            raise BatchError(f"layer {batch.layer} is not served; these are: {', '.join(self.layers)}")
        tokens = sum(segment.tokens for segment in batch.segments)
        if not 1 <= tokens <= self.max_batch_tokens:
            raise BatchError(f"a batch of {tokens} tokens; 1 to {self.max_batch_tokens} are allowed")
        row_bytes = layer.hidden_size * self._x.element_size()
        for segment in batch.segments:
            for offset in (segment.input_offset, segment.output_offset):
                end = offset + segment.tokens * row_bytes
                if segment.tokens < 1 or offset < 0 or offset % self._x.element_size() or end > self._arena.numel():
                    raise BatchError(f"segment {segment} does not lie in the arena of {self._arena.numel()} bytes")
        return layer

    def load(self, batch: messages.Batch) -> torch.Tensor:
        """The batch's rows [T, H] on the device."""
        start = 0
        self._page.begin_wait()
        for segment in batch.segments:
            self._x[start : start + segment.tokens].copy_(self._rows(segment, segment.input_offset), non_blocking=True)
            start += segment.tokens
        # whichever path runs first would have the copy in its time
        self._synchronize()
        return self._x[:start]

    def run_fused(self, x: torch.Tensor, name: str) -> Fused | None:
        """The rows when the launch is done; None if it was aborted. Blocks until the device has left it."""
        page, launch = self._page, self._workspace.launches + 1
        index, begun_ns = self._indices[name], time.monotonic_ns()
        page.begin_launch(launch, tokens=x.shape[0], layer=index, begun_at_ns=begun_ns)
        # the launch is over before the wait for it is
        page.begin_wait()
        fault = self._fault if self._faulty_launches else Fault.NONE
        self._faulty_launches = max(self._faulty_launches - 1, 0)
        out = self._fused_y[: x.shape[0]]
        self._tally.before(index, begun_ns)
        began_ns = self._clock_ns()
        fused_moe(x, self.layers[name], self._workspace, out=out, programs=self._programs, fault=fault)
        self._measure_peak(out)
        self._synchronize()
        self.fused_ns = self._clock_ns() - began_ns
        page.add(Line.HOST, Host.FUSED_BATCHES)
        if page.exit_of(launch) is not Exit.DONE:
            return None
        self._tally.after(x.shape[0], time.monotonic_ns() - begun_ns)
        return Fused(out, math.isfinite(float(self._peak_here)))

    def _measure_peak(self, y: torch.Tensor) -> None:
        """The largest absolute value, which NaN and infinity survive: one small kernel behind the layer's own."""
        torch.linalg.vector_norm(y, math.inf, out=self._peak)
        self._peak_here.copy_(self._peak, non_blocking=True)

    def run_baseline(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """y [T, H] by the baseline path."""
        begun_ns = time.monotonic_ns()
        self._page.add(Line.HOST, Host.BASELINE_BEGUN)
        began_ns = self._clock_ns()
        y = baseline_moe(x, self.layers[name], out=self._baseline_y[: x.shape[0]])
        self._synchronize()
        self.baseline_ns = self._clock_ns() - began_ns
        self._page.add(Line.HOST, Host.BASELINE_ENDED)
        self._page.add(Line.HOST, Host.BASELINE_BATCHES)
        self._counts.ran("baseline", x.shape[0], time.monotonic_ns() - begun_ns)
        return y

    def prove_baseline(self) -> None:
        """That one layer, by turns, gives on the baseline what it gave at the warm-up, all of its experts: whoever
        falls back to this worker relies on it. Raises BaselineBroken, or what the device raises."""
        name = next(self._to_prove)
        self._page.add(Line.HOST, Host.BASELINE_BEGUN)
        found = difference(self._proof_of(self.layers[name]), self._proofs[name])
        self._page.add(Line.HOST, Host.BASELINE_ENDED)
        self._page.end_wait()
        if not found.within(tolerance(self._x.dtype)):
            raise BaselineBroken(
                f"the baseline of {name} differs by {found.whole:.2e}, in one row by {found.row:.2e}, from what it "
                "gave at the warm-up"
            )

    def _proof_of(self, layer: MoELayer) -> torch.Tensor:
        routing = spread(self._proof_x.shape[0], layer, torch.int64)
        return baseline_moe(self._proof_x, layer, routing=routing)

    def settle(self) -> None:
        """A batch is answered: count what it took."""
        self._tally.settle()

    def rest(self) -> None:
        """There is nothing to do just now."""
        self._page.begin_wait()
        self._tally.rest()
        self._page.end_wait()

    def store(self, y: torch.Tensor, batch: messages.Batch) -> None:
        """Write the rows of y into the segments' output areas; they are there when this returns."""
        start = 0
        self._page.begin_wait()
        for segment in batch.segments:
            self._rows(segment, segment.output_offset).copy_(y[start : start + segment.tokens], non_blocking=True)
            start += segment.tokens
        self._synchronize()

    def compare(self, x: torch.Tensor, name: str, fused: torch.Tensor, baseline: torch.Tensor) -> Comparison:
        """Both paths' rows of one batch; only those that are finite on the baseline tell anything."""
        layer = self.layers[name]
        self._page.begin_wait()
        found = compare(fused, baseline, x, layer)
        self._page.end_wait()
        if found.rows == 0:
            return Comparison(x.shape[0], None, None, ok=True, excused=found.excused)
        ok = found.within(tolerance(layer.dtype))
        return Comparison(x.shape[0], found.whole, found.row, ok, found.excused)

    def _rows(self, segment: Segment, offset: int) -> torch.Tensor:
        size = segment.tokens * self._x.shape[1] * self._x.element_size()
        return self._arena[offset : offset + size].view(self._x.dtype).view(segment.tokens, self._x.shape[1])

    def _synchronize(self) -> None:
        """Wait for the device, and beat: beside a neighbour each of the waits between two batches takes its time."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._page.end_wait()


def _pin(memory: torch.Tensor) -> None:
    """Register host memory with CUDA; it stays registered until the process ends."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = runtime.cudaHostRegister(memory.data_ptr(), memory.numel() * memory.element_size(), 0)
    if error != runtime.cudaError.success:
        raise RuntimeError(f"cudaHostRegister of {memory.numel() * memory.element_size()} bytes failed: {error}")
