"""Breaks parts of the running tree on purpose: told to over the local socket, and only where the tree allows it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
from collections.abc import Callable, Sequence
from typing import get_args

from fdmoe_watchdog import messages, policy
from fdmoe_watchdog.channel import Channel, ChannelClosed
from fdmoe_watchdog.events import EventLog
from fdmoe_watchdog.messages import KernelFault, LastingFault
from fdmoe_watchdog.pair import Pair
from fdmoe_watchdog.process import Child, WorkerProcess
from fdmoe_watchdog.settings import RecoverySettings

KERNEL_FAULTS: tuple[str, ...] = (*get_args(KernelFault), *get_args(LastingFault))
# longer than any patience that somebody may have set
BLOCK_S = 3600.0
# so many launches are slow for each batch in a row that must say so: they are of several sizes
SLOW_LAUNCHES_PER_CHECK = 7
# and so many are wrong for each that is compared
WRONG_LAUNCHES_PER_CHECK = 2


class Refused(RuntimeError):
    """The fault cannot be injected now; the text says why."""


class Chaos:
    """`tell` sends to a child and does not raise. A fault of a kernel is answered by the worker that was armed."""

    def __init__(
        self,
        events: EventLog,
        tell: Callable[[Child | None, messages.Message], None],
        recovery: RecoverySettings,
    ) -> None:
        self._events = events
        self._tell = tell
        self._recovery = recovery
        self._askers: list[Channel] = []

    def request(
        self,
        asker: Channel,
        fault: messages.Fault,
        pairs: Sequence[Pair],
        others: dict[str, Child | None],
    ) -> None:
        """Inject it, or refuse. `others`: the gateway and the probe, by name."""
        try:
            if fault in KERNEL_FAULTS:
                self._arm(fault, pairs)
                self._askers.append(asker)
                return
            victims = self._break(fault, pairs, others)
        except Refused as refusal:
            asker.send(messages.ChaosReply(False, str(refusal)))
            return
        self._events.add("fault_injected", fault=fault, victims=" ".join(victims))
        asker.send(messages.ChaosReply(True, f"done to {', '.join(victims)}"))

    def armed(self, message: messages.FaultArmed) -> None:
        """A worker has answered."""
        for asker in self._askers:
            with contextlib.suppress(ChannelClosed):
                asker.send(messages.ChaosReply(message.ok, message.reason))
        self._askers.clear()

    def _arm(self, fault: str, pairs: Sequence[Pair]) -> None:
        pair = next((pair for pair in pairs if pair.active is not None and pair.state.path == "fused"), None)
        if pair is None or pair.active is None:
            paths = ", ".join(pair.state.path if pair.active else "down" for pair in pairs)
            raise Refused(f"the path is {paths}; a fault of the kernel needs the fused path")
        launches = self._launches(fault)
        self._events.add("fault_armed", worker=pair.active.name, fault=fault, launches=launches)
        kernel_fault = "wrong" if fault == "corrupt" else fault
        self._tell(pair.active, messages.ArmFault(kernel_fault, launches))  # type: ignore[arg-type]

    def _launches(self, fault: str) -> int:
        """How many of them have it."""
        if fault == "slow":
            return SLOW_LAUNCHES_PER_CHECK * max(self._recovery.slow_checks, 1)
        if fault == "corrupt":
            ratio = self._recovery.compare_ratio
            if not ratio:
                raise Refused("recovery.compare_ratio is 0: what is wrong would never be compared")
            return math.ceil(WRONG_LAUNCHES_PER_CHECK / ratio)
        return 1

    def _break(self, fault: str, pairs: Sequence[Pair], others: dict[str, Child | None]) -> list[str]:
        if fault in ("truncate-page", "noise-page"):
            worker = _active(pairs)
            _damage(worker, cut=fault == "truncate-page")
            return [worker.name]
        verb, _, whom = fault.partition("-")
        victims = _victims(whom, pairs, others)
        if verb == "block":
            for name, child in victims.items():
                if child.channel is None:
                    raise Refused(f"{name} is not connected")
                self._tell(child, messages.Block(BLOCK_S))
            return list(victims)
        for child in victims.values():
            child.signal(signal.SIGKILL if verb == "kill" else signal.SIGSTOP)
        return list(victims)


def _active(pairs: Sequence[Pair]) -> WorkerProcess:
    for pair in pairs:
        if pair.active is not None:
            return pair.active
    raise Refused("no worker is active")


def _victims(whom: str, pairs: Sequence[Pair], others: dict[str, Child | None]) -> dict[str, Child]:
    """The processes that are meant, by name; of several devices those of the first that has all of them."""
    if whom in others:
        child = others[whom]
        if child is None:
            raise Refused(f"there is no {whom}")
        return {whom: child}
    for pair in pairs:
        active = pair.active
        ready = [
            process
            for name, process in pair.processes.items()
            if pair.state.workers[name].life is policy.Life.READY and process is not active
        ]
        match whom:
            case "active" | "worker" if active is not None:
                return {active.name: active}
            case "standby" if ready:
                return {ready[0].name: ready[0]}
            case "workers" if active is not None and ready:
                return {process.name: process for process in (active, ready[0])}
            case "holder" if pair.holder is not None:
                return {pair.holder_name: pair.holder}
            case _:
                pass
    raise Refused(f"no device has the {whom} that this fault needs")


def _damage(worker: WorkerProcess, *, cut: bool) -> None:
    """What a stray process of the same user could do to a beat page."""
    path = worker.page.path
    if cut:
        os.truncate(path, 0)
        return
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(os.urandom(size))
