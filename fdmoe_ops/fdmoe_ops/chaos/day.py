"""A game day from settings to a report, as the command line runs it."""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import typer

from fdmoe_kernels import MoELayer
from fdmoe_kernels.bench.command import without
from fdmoe_ops.chaos import report
from fdmoe_ops.chaos.game_day import Plan, playable, run
from fdmoe_ops.chaos.load import Pool
from fdmoe_ops.chaos.plays import Group
from fdmoe_ops.chaos.result import Result
from fdmoe_ops.chaos.soak import soak
from fdmoe_ops.chaos.tree import running_tree
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.checkpoint.errors import CheckpointError
from fdmoe_ops.demo import write_demo_model
from fdmoe_ops.devices import are_cpu, find_devices
from fdmoe_ops.settings import Settings, SettingsError, WorkerSettings, resolve
from fdmoe_watchdog.probe.recorded import H200

_MODEL = "game-day"
# the sizes that a soak comes to after the first, as far as a batch may hold them
_SOAK_TOKENS = (64, 256, 1024, 4096)


class Day:
    """Prints a line for each fault, and writes the report anew after each, as after each phase of a soak: what is cut
    off has one, too."""

    def __init__(self, settings: Settings, directory: Path, commit: str, *, clients: int, max_tokens: int) -> None:
        self._settings = settings
        self._directory = directory
        self._commit = commit
        self._clients = clients
        self._max_tokens = max_tokens

    def names(self, only: list[str]) -> list[str]:
        """Those of `only`, or all that can be played here, in the catalogue's order. Raises SettingsError."""
        possible = playable()
        for name in only:
            if name not in possible:
                raise SettingsError(f"only names {name!r}; here can be played: {', '.join(possible)}")
        return [name for name in possible if not only or name in only]

    def play(self, names: list[str], *, abortable: int, others: int) -> bool:
        """Whether every fault came to what it must come to. Raises SettingsError for a checkpoint that is none, or a
        directory that cannot be made."""
        self._make_directory()
        with self._model() as model:
            plan = self._plan(model, *self._layer(model), {Group.ABORTABLE: abortable, Group.OTHER: others})
            rows, ok = [], True
            where = report.machine() | {"commit": self._commit, "command": _command()}
            for result in run(plan, names):
                rows.append(report.row(result, **where))
                ok = ok and result.ok
                typer.echo(_line(rows[-1], result))
                report.write(self._directory, rows)
        return ok

    def soak(self, minutes: float) -> bool:
        """No fault, and whether none was found; adds soak.csv to the report. Raises SettingsError as `play` does."""
        self._make_directory()
        with self._model() as model:
            name, layer = self._layer(model)
            plan = self._plan(model, name, layer, {})
            most = self._worker(model).max_batch_tokens
            pools = [plan.pool, *(Pool.of(name, layer, tokens) for tokens in _SOAK_TOKENS if tokens <= most)]
            where = report.machine() | {"commit": self._commit, "command": _command()}
            with running_tree(*plan.flags) as tree:
                for soaked in soak(tree, pools, self._devices[0], minutes):
                    row = report.soak_row(soaked, **where)
                    report.write_csv(self._directory / "soak.csv", [row])
        typer.echo(
            f"{row['seconds']} s, {row['requests']} requests: {row['false_alarms']} false alarms, "
            f"{row['failed']} lost, {row['wrong']} wrong"
        )
        return soaked.ok

    def _make_directory(self) -> None:
        """Before hours are spent on what could not be written."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"--report: {error}") from error

    @functools.cached_property
    def _devices(self) -> tuple[str, ...]:
        return tuple(find_devices(self._settings.devices))

    def _worker(self, model: Path) -> WorkerSettings:
        """As a tree that serves `model` has it."""
        served = self._settings.model.model_copy(update={"path": model})
        return resolve(self._settings.model_copy(update={"model": served}), self._devices).worker

    def _plan(self, model: Path, name: str, layer: MoELayer, repetitions: dict[Group, int]) -> Plan:
        settings, worker = self._settings, self._worker(model)
        # without a GPU there is a probe all the same, of a recording
        recording = (f"--watchdog-gpu-recording={H200}",) if are_cpu(self._devices) else ()
        # one layer is enough to break, and starts in a moment
        flags = (
            *recording,
            f"--model-path={model}", f"--model-name={_MODEL}", f"--model-layers={name.rpartition('.')[2]}",
            f"--devices={','.join(settings.devices)}", f"--worker-programs={worker.programs}",
            f"--worker-max-batch-tokens={worker.max_batch_tokens}",
            *(("--enable-recovery-compare-before-answer",) if settings.recovery.compare_before_answer else ()),
        )  # fmt: skip
        pool = Pool.of(name, layer, self._max_tokens)
        compared = settings.recovery.compare_before_answer
        return Plan(flags, self._devices[0], pool, self._clients, repetitions, compared)

    def _layer(self, model: Path) -> tuple[str, MoELayer]:
        """The first of the served layers, on the CPU, and its name in requests."""
        layers = self._settings.model.layers
        try:
            checkpoint = Checkpoint.open(model)
            index = (checkpoint.moe_layers if layers == "all" else layers)[0]
            return f"{_MODEL}/layers.{index}", checkpoint.load(index, device="cpu", dtype=checkpoint.dtype)
        except CheckpointError as error:
            raise SettingsError(str(error)) from error

    @contextlib.contextmanager
    def _model(self) -> Iterator[Path]:
        """The settings' checkpoint, or a demo for as long as it is used."""
        if self._settings.model.path is not None:
            yield self._settings.model.path
            return
        with tempfile.TemporaryDirectory(prefix="fdmoe-game-day-") as directory:
            write_demo_model(Path(directory) / "demo")
            yield Path(directory) / "demo"


def _line(row: dict[str, object], result: Result) -> str:
    times = ", ".join(
        f"{name} {row[f'{name}_p50_ms']} / {row[f'{name}_max_ms']} ms"
        for name in ("detect", "answer")
        if row[f"{name}_p50_ms"] != ""
    )
    verdict = "ok" if result.ok else f"NOT OK {'; '.join(result.unmet)[:200]}"
    return (
        f"{row['fault']:<20} {row['repetitions']:>3} x  {row['requests']:>6} requests, {row['failed']} lost, "
        f"{row['wrong']} wrong  {times}  {verdict}"
    )


def _command() -> str:
    """The command line, less where the report goes and what commit it was told."""
    return shlex.join(["fdmoe", *without(sys.argv[1:], ("--report", "--commit")), "--report", "DIR"])
