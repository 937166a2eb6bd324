"""What the watchdog is told to run: a process tree in plain values, made by the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fdmoe_watchdog.annotator_keeper import AnnotatorPlan
from fdmoe_watchdog.probe_keeper import ProbePlan
from fdmoe_watchdog.settings import RecoverySettings, WatchdogSettings


@dataclass(frozen=True)
class TreePlan:
    """One tree: a gateway, and a holder of weights and a pair of workers on each device.

    run_dir         made by the watchdog (mode 0700), removed when it ends; holds sockets, pages and the arena
    flight_dir      where flight records are kept; outlives the tree
    devices         cpu, or cpu:N, or cuda:N: each once, all of one kind
    weights_command is run with `--device D --name NAME --generation N` behind it
    worker_command  is run with `--device D --weights MANIFEST --name NAME --generation N` behind it, or `--device D
                    --spare FD`: then it writes a byte there once it has imported everything, and what is left comes as
                    a JSON list on its standard input
    drain_s         how long the gateway may take to end once it was told to
    probe           what NVML is asked for; None where there is nothing to ask
    prepare         is called with run_dir once it exists, before any child starts (writes the children's settings)
    announce        is called with the gateway's and the watchdog's URL once the tree serves
    annotator       who is told of every decision; None where nobody is
    """

    run_dir: Path
    flight_dir: Path
    devices: tuple[str, ...]
    arena_bytes: int
    drain_s: float
    probe: ProbePlan | None
    weights_command: tuple[str, ...]
    worker_command: tuple[str, ...]
    gateway_command: tuple[str, ...]
    environment: Mapping[str, str]
    watchdog: WatchdogSettings
    recovery: RecoverySettings
    chaos: bool
    version: str
    prepare: Callable[[Path], None]
    announce: Callable[[str, str], None]
    annotator: AnnotatorPlan | None = None
