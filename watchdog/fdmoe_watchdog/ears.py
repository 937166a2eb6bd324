"""What a device's workers and holder say: noted in their processes, counted, and told as events."""

from __future__ import annotations

import math
import time

from fdmoe_watchdog import messages, policy
from fdmoe_watchdog.buckets import token_bucket
from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.counts import counts_path
from fdmoe_watchdog.events import BoundEvents, Level
from fdmoe_watchdog.flights import FlightRecorder
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.metrics import Metrics
from fdmoe_watchdog.page import Stage
from fdmoe_watchdog.process import HolderProcess, WorkerProcess

# of the requests that an event names: their ids are the clients', and the status has to fit a packet
_NAMED = 4


class Ears:
    def __init__(self, events: BoundEvents, metrics: Metrics, recorder: FlightRecorder, ledger: Ledger) -> None:
        self._events = events
        self._metrics = metrics
        self._recorder = recorder
        self._ledger = ledger

    def hear(self, process: WorkerProcess, message: messages.AnyMessage) -> None:
        """What a worker says. Raises ChannelClosed for what it may not say."""
        match message:
            case messages.WorkerReady():
                process.ready = message
                self._count(process, message)
                seconds, stages_s = time.monotonic() - process.started_at, process.tracker.stages_s
                if message.fused:
                    self._metrics.abort_drill.observe(message.abort_s)
                if process.generation > 1:
                    self._metrics.recovery.labels("restart").observe(seconds)
                self._events.add(
                    "worker_ready", level="info" if message.fused else "error", worker=process.name,
                    generation=process.generation, fused=message.fused, seconds=round(seconds, 3),
                    starting_s=round(stages_s[Stage.STARTING], 3), trial_s=round(stages_s[Stage.TRIAL], 3),
                    loading_s=round(stages_s[Stage.LOADING], 3), compiling_s=round(stages_s[Stage.COMPILING], 3),
                    abort_s=round(message.abort_s, 6),
                )  # fmt: skip
            case messages.ChildFailed(reason=reason, blame=blame):
                process.failed = (reason, blame)
                self._events.add(
                    "worker_failed", level="error", worker=process.name, generation=process.generation, blame=blame,
                    reason=reason,
                )  # fmt: skip
            case messages.Compared():
                self._compared(process, message)
            case messages.Slow():
                self._slow(process, message)
            case messages.ExpertTokens():
                self._recorder.expert_tokens(message)
            case _:
                raise ChannelClosed(f"a {type(message).__name__} is not a worker's to send")

    def _count(self, process: WorkerProcess, ready: messages.WorkerReady) -> None:
        """Its count page is read from now on; files are opened by a thread that nothing waits for."""
        layers = tuple(layer.name for layer in ready.layers)
        experts = ready.layers[0].experts if ready.layers else 0
        path = counts_path(process.page.path)
        self._ledger.background.submit(lambda: self._ledger.came(process.name, path, layers, experts))

    def hear_holder(self, holder: HolderProcess, message: messages.AnyMessage) -> None:
        """What a holder of weights says. Raises ChannelClosed for what it may not say."""
        match message:
            case messages.WeightsReady(size_bytes=size_bytes):
                holder.ready, holder.ready_ns = message, time.monotonic_ns()
                self._events.add(
                    "weights_ready", holder=holder.name, generation=holder.generation, size_bytes=size_bytes
                )  # fmt: skip
            case messages.ChildFailed(reason=reason, blame=blame):
                holder.failed = (reason, blame)
                self._events.add(
                    "weights_failed", level="error", holder=holder.name, generation=holder.generation, blame=blame,
                    reason=reason,
                )  # fmt: skip
            case _:
                raise ChannelClosed(f"a {type(message).__name__} is not a weights holder's to send")

    def _compared(self, process: WorkerProcess, message: messages.Compared) -> None:
        process.checks.append(policy.Check(token_bucket(message.tokens), message.ok, message.suspect))
        # a histogram's sum that has met a NaN stays one for ever
        error = message.relative_error if math.isfinite(message.relative_error) else math.inf
        self._metrics.shadow_error.observe(error)
        self._metrics.shadow_checks.labels("ok" if message.ok else "mismatch").inc()
        if not message.ok:
            self._events.add(
                "shadow_mismatch", level="warning", worker=process.name, layer=message.layer, tokens=message.tokens,
                served=message.served, relative_error=message.relative_error, row_error=message.row_error,
                requests=" ".join(message.requests[:_NAMED]),
            )  # fmt: skip

    def _slow(self, process: WorkerProcess, message: messages.Slow) -> None:
        process.slow = process.slow or not message.excused
        level: Level = "info" if message.excused else "warning"
        self._events.add(
            "slow_excused" if message.excused else "slow", level=level,
            worker=process.name, layer=message.layer, bucket=token_bucket(message.tokens),
            served=message.served, fused_s=message.fused_ns / 1e9, baseline_s=message.baseline_ns / 1e9,
            usual_fused_s=message.usual_fused_ns / 1e9, usual_baseline_s=message.usual_baseline_ns / 1e9,
        )  # fmt: skip
