"""The worker's loop: batches from the gateway, orders from the watchdog, one at a time, in one thread."""

from __future__ import annotations

import contextlib
import selectors
import time

import structlog
from torch import Tensor

from fdmoe_ops.worker.choice import Choice
from fdmoe_ops.worker.engine import BatchError, Comparison, Engine, Fused
from fdmoe_ops.worker.pace import Pace
from fdmoe_watchdog import messages
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.messages import Path
from fdmoe_watchdog.page import Host, Line, Page

_IDLE_BEAT_S = 0.1


class Loop:
    """Serves until the watchdog's channel closes. The newest gateway connection is the one that counts.

    name           of this worker
    chaos          faults may be asked for
    compare_first  no answer of the fused path leaves before the baseline has given the same
    idle_proof_s   the time in which a worker that has nothing to do proves the baseline of each layer once
    """

    def __init__(
        self,
        engine: Engine,
        choice: Choice,
        pace: Pace,
        page: Page,
        control: Channel,
        listener: Listener,
        ready: messages.WorkerReady,
        *,
        name: str,
        chaos: bool,
        compare_first: bool,
        idle_proof_s: float,
    ) -> None:
        self._engine = engine
        self._choice = choice
        self._pace = pace
        self._page = page
        self._control = control
        self._listener = listener
        self._ready = ready
        self._name = name
        self._chaos = chaos
        self._compare_first = compare_first
        self._proof_pause_s = idle_proof_s / len(engine.layers)
        self._proven_at = time.monotonic()
        self._gateway: Channel | None = None
        self._aborted = False
        self._pace_asks = False
        self._log = structlog.get_logger("fdmoe.worker")

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ, self._on_control)
            selector.register(self._listener, selectors.EVENT_READ, lambda: self._on_connection(selector))
            # who is ready is judged by its beats, and those of the start are old
            self._page.end_wait()
            self._control.send(self._ready)
            while True:
                self._page.begin_wait()
                ready = selector.select(_IDLE_BEAT_S)
                self._page.end_wait()
                if not ready:
                    self._rest()
                for key, _ in ready:
                    if key.fileobj is self._gateway:
                        self._on_gateway(selector)
                    elif key.data is not None:
                        key.data()

    def _rest(self) -> None:
        self._engine.rest()
        now = time.monotonic()
        if now - self._proven_at >= self._proof_pause_s:
            self._engine.prove_baseline()
            # one that was late leaves the next ones in time, unless many were
            self._proven_at = max(self._proven_at, now - 2 * self._proof_pause_s) + self._proof_pause_s

    def _on_control(self) -> None:
        message = self._control.receive()
        match message:
            case messages.SetPath(path=path, buckets=buckets):
                self._choice.order(path, buckets)
            case messages.ArmFault(fault=fault, launches=launches):
                self._arm(fault, launches)
            case messages.Block(seconds=seconds) if self._chaos:
                time.sleep(seconds)
            case None:
                pass
            case _:
                raise ChannelClosed(f"a {type(message).__name__} is not for a worker")

    def _arm(self, fault: messages.KernelFault, launches: int) -> None:
        path = self._choice.path
        if not self._chaos:
            ok, reason = False, "chaos is off in this worker"
        elif path != "fused":
            ok, reason = False, f"the path is {path}"
        else:
            ok, reason = True, "the next fused launch has it" if launches == 1 else f"the next {launches} have it"
            self._engine.arm(fault, launches)
        self._control.send(messages.FaultArmed(fault, ok, reason))

    def _on_connection(self, selector: selectors.BaseSelector) -> None:
        channel = self._listener.accept()
        if channel is None:
            return
        if self._gateway is not None:
            self._hang_up(selector)
        self._gateway = channel
        selector.register(channel, selectors.EVENT_READ, None)
        self._forget_what_was_sent()
        try:
            channel.send(self._ready)
        except ChannelClosed as error:
            # it came and went while this loop was at work
            self._log.info("gateway_left", reason=str(error))
            self._hang_up(selector)

    def _hang_up(self, selector: selectors.BaseSelector) -> None:
        assert self._gateway is not None
        selector.unregister(self._gateway)
        self._gateway.close()
        self._gateway = None
        self._forget_what_was_sent()

    def _forget_what_was_sent(self) -> None:
        """What a gateway that is gone had sent, or only counted, does not wait any more: the next one may take seconds
        to come, and this worker would look frozen."""
        self._page.write(Line.HOST, Host.ANSWERED, self._page.read(Line.GATEWAY, 0))

    def _on_gateway(self, selector: selectors.BaseSelector) -> None:
        assert self._gateway is not None
        try:
            message = self._gateway.receive()
            if isinstance(message, messages.Batch):
                self._serve(message)
            elif message is not None and not isinstance(message, messages.Hello):
                raise ChannelClosed(f"a {type(message).__name__} is not for a worker")
        except ChannelClosed as error:
            self._log.info("gateway_left", reason=str(error))
            self._hang_up(selector)

    def _serve(self, batch: messages.Batch) -> None:
        started = time.monotonic_ns()
        engine = self._engine
        try:
            engine.check(batch)
        except BatchError as error:
            self._log.error(
                "batch_refused", batch=batch.batch, layer=batch.layer, reason=str(error), requests=batch.requests
            )
            self._answer(batch, "baseline", started, str(error))
            return
        x = engine.load(batch)
        taken = self._choice.take(batch.layer, x.shape[0], time.monotonic())
        y, path = self._run(x, batch, taken.path)
        engine.store(y, batch)
        self._answer(batch, path, started)
        engine.settle()
        if path == "fused" and (taken.compare or self._pace_asks) and not self._compare_first:
            self._tell(batch, "fused", engine.compare(x, batch.layer, y, engine.run_baseline(x, batch.layer)))
        elif taken.compare and taken.path == "baseline":
            result = self._run_fused(x, batch)
            if result is not None:
                self._tell(batch, "baseline", engine.compare(x, batch.layer, result.y, y))
        self._count_for_record(x, batch)

    def _count_for_record(self, x: Tensor, batch: messages.Batch) -> None:
        """Where the tokens went of a launch that was aborted, and of what another worker had when it was fenced."""
        replay = batch.replay
        if self._aborted:
            self._aborted = False
            self._tell_tokens(x, batch.layer, self._name, self._ready.generation, self._engine.launches)
        if replay is not None:
            self._tell_tokens(x[: replay.tokens], batch.layer, replay.worker, replay.generation, None)

    def _tell_tokens(self, x: Tensor, layer: str, worker: str, generation: int, launch: int | None) -> None:
        counts = self._engine.expert_tokens(x, layer)
        self._send(messages.ExpertTokens(worker, generation, launch, layer, x.shape[0], counts))

    def _run(self, x: Tensor, batch: messages.Batch, path: Path) -> tuple[Tensor, Path]:
        """The rows that are the answer, and the path that gave them: the baseline also where it was to be the fused
        one, which was aborted, or gave what the baseline does not give. What is not finite is always compared, all the
        rest if every answer is to be compared first."""
        result = self._run_fused(x, batch) if path == "fused" else None
        if result is not None and result.finite and not self._compare_first:
            return result.y, "fused"
        baseline = self._engine.run_baseline(x, batch.layer)
        if result is None:
            return baseline, "baseline"
        comparison = self._engine.compare(x, batch.layer, result.y, baseline)
        # where either may be right, the baseline is what this setting promises
        same = comparison.ok and not comparison.excused
        if not comparison.ok:
            if not result.finite:
                self._log.error("not_finite", batch=batch.batch, layer=batch.layer, requests=batch.requests)
            self._choice.stay_on_baseline()
        if self._compare_first or not comparison.ok:
            self._tell(batch, "fused" if same else "baseline", comparison)
        return (result.y, "fused") if same else (baseline, "baseline")

    def _run_fused(self, x: Tensor, batch: messages.Batch) -> Fused | None:
        """The fused path's rows; None if it was aborted."""
        result = self._engine.run_fused(x, batch.layer)
        if result is None:
            self._log.warning("aborted", batch=batch.batch, layer=batch.layer, requests=batch.requests)
            self._choice.stay_on_baseline()
            self._aborted = True
            return None
        self._pace_asks = self._pace.ran(batch.layer, x.shape[0], self._engine.fused_ns)
        return result

    def _tell(self, batch: messages.Batch, served: Path, comparison: Comparison) -> None:
        error, row_error = comparison.relative_error, comparison.row_error
        if error is None or row_error is None:
            return
        layer, tokens, engine = batch.layer, comparison.tokens, self._engine
        if not comparison.ok:
            self._log.error(
                "shadow_mismatch",
                batch=batch.batch,
                layer=layer,
                served=served,
                relative_error=error,
                row_error=row_error,
                requests=batch.requests,
            )
            self._send(messages.Compared(layer, tokens, served, error, row_error, ok=False, requests=batch.requests))
            return
        verdict = self._pace.compared(layer, tokens, engine.fused_ns, engine.baseline_ns)
        self._send(messages.Compared(layer, tokens, served, error, row_error, ok=True, suspect=verdict.suspect))
        if (late := verdict.slow or verdict.excused) is not None:
            self._send(
                messages.Slow(
                    layer, tokens, served, late.fused_ns, late.baseline_ns, late.usual_fused_ns, late.usual_baseline_ns,
                    excused=verdict.slow is None,
                )
            )  # fmt: skip

    def _send(self, message: messages.Message) -> None:
        # a watchdog that is held up does not read: a lost comparison only delays the way back, lost counts are missing
        # from a record. One that is gone is seen where its messages are received.
        with contextlib.suppress(ChannelClosed):
            self._control.send(message)

    def _answer(self, batch: messages.Batch, path: Path, started: int, error: str = "") -> None:
        assert self._gateway is not None
        self._page.add(Line.HOST, Host.ANSWERED)
        self._gateway.send(messages.Answer(batch.generation, batch.batch, path, time.monotonic_ns() - started, error))
