"""Trying one row in one cell: right first, then fast."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import asdict
from typing import Generic

import torch
from triton.errors import TritonError

from fdmoe_kernels.bench.models import random_tokens
from fdmoe_kernels.comparing import tolerance
from fdmoe_kernels.fused import fused_moe
from fdmoe_kernels.hopper.driver import BuildError
from fdmoe_kernels.layer import MoELayer
from fdmoe_kernels.reference import reference_moe
from fdmoe_kernels.tiles import Precision
from fdmoe_kernels.timing import Run, Timer
from fdmoe_kernels.tune.journal import Journal, Result
from fdmoe_kernels.tuning.form import Form, R
from fdmoe_kernels.tuning.tables import pinned
from fdmoe_kernels.workspace import Workspace

# rows of the batch that are compared with float32, drawn at random
_COMPARED_TOKENS = 512
# against float32, in any type: what the benchmark holds bfloat16 to
MOST_ERROR = 6e-3
# a first look; a candidate that is slower than this against the best is let go
_FEW_RUNS, _FEW_BUDGET_S, _TOO_SLOW = 9, 0.1, 1.1
_RUNS, _BUDGET_S = 60, 0.5


class DeviceLostError(RuntimeError):
    """A candidate took the device's context with it. A run that resumes leaves this candidate out."""


class Trials(Generic[R]):
    """All trials of one cell: `tokens` tokens of one layer. What the journal knows is not tried again."""

    def __init__(
        self,
        cell: str,
        form: Form[R],
        layer: MoELayer,
        workspace: Workspace,
        tokens: int,
        timer: Timer,
        journal: Journal,
        precision: Precision = "ieee",
    ) -> None:
        self.cell, self.form = cell, form
        self.average = tokens * layer.routing.top_k / layer.experts
        self._layer, self._workspace, self._tokens = layer, workspace, tokens
        self._timer, self._journal = timer, journal
        self._precision: Precision = precision
        self._x = random_tokens(layer, tokens)
        self._y = torch.empty_like(self._x)
        self._compared = torch.randperm(tokens, device=layer.device)[:_COMPARED_TOKENS]
        self._reference = reference_moe(self._x[self._compared], layer)
        self._known: dict[Hashable, tuple[R, Result]] = {}
        for values, result in journal.results.get(cell, []):
            row = form.parse(values)
            self._known[self._fitted(row)] = row, result

    def time(self, row: R) -> float:
        """Of a row over that of the cell's first; infinity if it was not tried or cannot serve."""
        known = self._known.get(self._fitted(row))
        return math.inf if known is None else known[1].time

    def attempt(self, row: R, best: R | None) -> float:
        """Try a row beside the best so far, unless it or one that comes to the same was tried before; its `time`.

        Raises DeviceLostError when the device does not answer afterwards.
        """
        key = self._fitted(row)
        if key not in self._known:
            if best is None or self.time(best) == math.inf:
                best = self._fastest()
            values = asdict(row)
            self._journal.begin(self.cell, values)
            try:
                result = self._try(row, best)
            except KeyboardInterrupt:
                self._journal.interrupted(self.cell, values)
                raise
            self._journal.end(self.cell, values, result)
            self._known[key] = row, result
        return self._known[key][1].time

    def _fastest(self) -> R | None:
        """Of all that were tried; None if none of them can serve."""
        usable = [(result.relative, row) for row, result in self._known.values() if result.relative is not None]
        return min(usable, key=lambda found: found[0])[1] if usable else None

    def _fitted(self, row: R) -> Hashable:
        return self.form.fitted(row, self._layer, self._tokens)

    def _run(self, row: R) -> Run:
        def run() -> None:
            with pinned(self.form, row):
                fused_moe(self._x, self._layer, self._workspace, out=self._y, precision=self._precision)

        return run

    def _try(self, row: R, best: R | None) -> Result:
        run = self._run(row)
        self._y.fill_(math.nan)
        try:
            run()
            self._synchronize()
        except (TritonError, BuildError, RuntimeError) as error:
            note = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            try:
                self._synchronize()
            except RuntimeError as lost:
                raise DeviceLostError(f"{self.cell}, {row}: {note}") from lost
            return Result("failed", None, None, note)
        error_found = self._error()
        # that of two paths; each is within half of it of float32
        allowed = min(tolerance(self._layer.dtype, self._precision) / 2, MOST_ERROR)
        if not error_found <= allowed:
            self._workspace.control.zero_()  # as it was made: counters that are wrong now would spoil the next launch
            return Result("wrong", None, None, f"error {error_found:.2e}; {allowed:.0e} is allowed")
        return self._timed(run, best)

    def _timed(self, run: Run, best: R | None) -> Result:
        variants = {"candidate": self._timer.captured(run)}
        if best is None:
            time = self._timer.latency_us(variants, runs=_RUNS, budget_s=_BUDGET_S)["candidate"]
            return Result("measured", 1.0, round(time, 2))
        variants["best"] = self._timer.captured(self._run(best))
        # relative to the first row by way of the best beside it: clocks that drift between trials do not matter
        scale = self.time(best)
        times = self._timer.latency_us(variants, runs=_FEW_RUNS, budget_s=_FEW_BUDGET_S)
        slow = times["candidate"] > _TOO_SLOW * times["best"]
        if not slow:
            times = self._timer.latency_us(variants, runs=_RUNS, budget_s=_BUDGET_S)
        relative = scale * times["candidate"] / times["best"]
        return Result("slow" if slow else "measured", round(relative, 4), round(times["candidate"], 2))

    def _error(self) -> float:
        if not bool(torch.isfinite(self._y).all()):
            return math.nan
        difference = self._y[self._compared].float() - self._reference
        return float(difference.norm() / self._reference.norm())

    def _synchronize(self) -> None:
        if self._layer.device.type == "cuda":
            torch.cuda.synchronize(self._layer.device)
