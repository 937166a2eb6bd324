"""`fdmoe serve`: from settings to a plan of the process tree; then this process is the watchdog."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata

import typer

from fdmoe_ops import log
from fdmoe_ops import settings as tree
from fdmoe_ops.annotator.chronicle import EVENTS
from fdmoe_ops.cli.first_request import FirstRequest
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.devices import are_cpu, find_devices
from fdmoe_ops.gateway.address import bind
from fdmoe_ops.grafana import extra, token
from fdmoe_ops.settings import GrafanaSettings, Settings, SettingsError
from fdmoe_ops.version import version
from fdmoe_watchdog.annotator_keeper import AnnotatorPlan
from fdmoe_watchdog.plan import TreePlan
from fdmoe_watchdog.probe_keeper import ProbePlan

# in use, not of this machine, a privileged port
ADDRESS_ERRORS = (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES)
SETTINGS_FILE = "settings.json"


def serve(loaded: Loaded) -> None:
    """Serve MoE layers: gateway, workers and their watchdog, until Ctrl-C."""
    log.configure(loaded.settings.log, "watchdog")
    devices = find_devices(loaded.settings.devices)
    settings = tree.resolve(loaded.settings, tuple(devices))
    _check_grafana(settings.grafana)
    _provide_checkpoint(settings, is_demo=loaded.settings.model.path is None)
    _check_traces(settings)
    plan = tree_plan(settings, os.environ, devices)
    _check_address(settings.gateway.host, settings.gateway.port)
    raise typer.Exit(_run(plan))


def _run(plan: TreePlan) -> int:
    # here, so that the other commands start without the supervisor's dependencies
    from fdmoe_watchdog import supervisor
    from fdmoe_watchdog.rundir import RunDirectoryError

    try:
        return supervisor.run(plan)
    except RunDirectoryError as error:
        raise SettingsError(f"run_dir cannot be used: {error}") from error
    except OSError as error:
        if error.errno not in ADDRESS_ERRORS:
            raise
        address = f"{plan.watchdog.host}:{plan.watchdog.port}"
        raise SettingsError(f"the watchdog cannot listen on {address} (watchdog.host, .port): {error}") from error


def _check_grafana(settings: GrafanaSettings) -> None:
    """Only what is wrong here: a Grafana that is away now may be back when it is needed."""
    if settings.url is None:
        return
    extra.require()
    token.read_token(settings)
    if warning := token.exposure(settings):
        typer.echo(f"warning: {warning}", err=True)


def _check_traces(settings: Settings) -> None:
    """Without importing any of it: this process is the watchdog."""
    if settings.traces.endpoint is None:
        return
    for distribution in ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"):
        try:
            metadata.version(distribution)
        except metadata.PackageNotFoundError as error:
            raise SettingsError(
                f"traces.endpoint is {settings.traces.endpoint}, and {distribution} is not installed: "
                "pip install 'fdmoe-ops[otel]'"
            ) from error


def _check_address(host: str, port: int) -> None:
    """The gateway is a child that would be started again and again; here a taken port is one clear line."""
    try:
        bind(host, port).close()
    except OSError as error:
        raise SettingsError(
            f"the gateway cannot listen on {host}:{port} (gateway.host, gateway.port): {error.strerror or error}"
        ) from error


def tree_plan(settings: Settings, environment: Mapping[str, str], uuids: Mapping[str, str]) -> TreePlan:
    """The plan for resolved settings. `environment` is this process's, which the children inherit; `uuids` are those of
    the devices (find_devices).

    Raises SettingsError where the checkpoint has no config.json.
    """
    assert settings.run_dir, "resolved settings have a run directory"
    assert settings.flight_dir, "resolved settings have a flight directory"
    settings_file = settings.run_dir / SETTINGS_FILE
    additions = _additions(settings.devices, environment)
    first_request = FirstRequest.read(settings)

    def command(module: str) -> tuple[str, ...]:
        return (sys.executable, "-m", module, "--settings", str(settings_file))

    def announce(gateway_url: str, watchdog_url: str) -> None:
        typer.echo(f"gateway   {gateway_url}   ({settings.model.name} on {', '.join(settings.devices)})")
        typer.echo(f"watchdog  {watchdog_url}   (status page; metrics: {watchdog_url}/metrics)")
        typer.echo(f"\nA first request:\n\n{first_request.curl(gateway_url)}\n")
        sys.stdout.flush()

    return TreePlan(
        run_dir=settings.run_dir,
        flight_dir=settings.flight_dir,
        devices=settings.devices,
        arena_bytes=settings.arena.size_bytes,
        drain_s=settings.gateway.drain_timeout_s,
        probe=_probe_plan(settings, uuids, additions),
        weights_command=command("fdmoe_ops.weights"),
        worker_command=command("fdmoe_ops.worker"),
        gateway_command=command("fdmoe_ops.gateway"),
        environment=additions,
        watchdog=settings.watchdog,
        recovery=settings.recovery,
        chaos=settings.chaos,
        version=version(),
        prepare=lambda run_dir: tree.write(settings, run_dir / SETTINGS_FILE),
        announce=announce,
        annotator=AnnotatorPlan(command("fdmoe_ops.annotator"), additions, EVENTS) if settings.grafana.url else None,
    )


def _probe_plan(settings: Settings, uuids: Mapping[str, str], environment: Mapping[str, str]) -> ProbePlan | None:
    """NVML is asked about GPUs; without one, a recording can be replayed."""
    recording = settings.watchdog.gpu_recording
    if are_cpu(settings.devices) and recording is None:
        return None
    assert settings.run_dir, "resolved settings have a run directory"
    asked = {name: uuids.get(name) or str(index) for index, name in enumerate(settings.devices)}
    return ProbePlan(
        asked, settings.run_dir, environment, recording, settings.log.format.value, settings.log.level.value,
        settings.chaos,
    )  # fmt: skip


def _additions(devices: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    # PYTHONSAFEPATH: `python -m` puts the current directory first on sys.path, and a file or folder there that is
    # named like a module (this repository's own `kernels/` is) must not be imported in its place
    additions = {"PYTHONSAFEPATH": "1"}
    if are_cpu(devices):
        # OMP_NUM_THREADS: two workers and a gateway share few cores, and torch takes all of them for each process
        additions |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")}
    return additions


def _provide_checkpoint(settings: Settings, *, is_demo: bool) -> None:
    path = settings.model.path
    assert path, "resolved settings have a model path"
    if not is_demo:
        if not path.is_dir():
            raise SettingsError(f"model.path is {path}; a Hugging Face model directory is needed, and there is none")
        return
    if (path / "config.json").exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # in a process of its own, because numpy must stay out of this one
    done = subprocess.run((sys.executable, "-P", "-m", "fdmoe_ops.cli", "demo-model", str(path)), check=False)
    if done.returncode != 0:
        raise SettingsError(f"the demo checkpoint could not be written to {path}; --model-path names another one")
