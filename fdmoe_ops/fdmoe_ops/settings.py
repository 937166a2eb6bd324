"""The settings tree: every option of the service is written here once, with its unit, bounds and default.

Flags, FDMOE_* variables and YAML keys are made from it (fdmoe_ops.cli.sources); the children of the watchdog get the
resolved tree as a JSON file. The watchdog's own branches live in fdmoe_watchdog.settings.
"""

from __future__ import annotations

import json
import os
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field

from fdmoe_ops.devices import are_cpu
from fdmoe_watchdog.settings import MIB, Group, RecoverySettings, WatchdogSettings

BranchT = TypeVar("BranchT", bound=Group)
# sockaddr_un holds 107 bytes; the longest socket of a tree is "/worker-a127-g" + a 10-digit generation + ".sock"
RUN_DIR_MAX_BYTES = 78
DEVICE_WORDS = ("auto", "cpu", "cuda", "all")
# torch keeps a device's index in a signed byte, and takes larger ones for others
MAX_DEVICE_INDEX = 127


class SettingsError(ValueError):
    """Values that cannot be used; the text has a line for each and names the option, the value and what is allowed."""


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class LogFormat(StrEnum):
    CONSOLE = "console"
    JSON = "json"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _layers(value: object) -> object:
    """ "all", "0,2" or a list of indices -> "all" or a tuple of ints."""
    allowed = 'allowed: "all", or layer indices from 0 such as 0,2'
    if value == "all":
        return value
    items = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(allowed)
    digits = [str(item).strip() for item in items]
    if not all(re.fullmatch("[0-9]+", text) for text in digits):
        raise ValueError(allowed)
    layers = tuple(int(text) for text in digits)
    if len(set(layers)) != len(layers):
        raise ValueError("a layer is named twice; " + allowed)
    return layers


def _devices(value: object) -> tuple[str, ...]:
    """A word, "0,1", "cuda:0,cuda:1", "cpu:0,cpu:1" or a list of such items -> ("auto",) or ("cuda:0", "cuda:1")."""
    allowed = "allowed: auto, cpu, cuda, all, indices of GPUs such as 0,1 or cuda:0,cuda:1, or cpu:0,cpu:1"
    items = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    if not isinstance(items, list | tuple) or not items:
        raise ValueError(allowed)
    names = [str(item).strip() for item in items]
    if len(names) == 1 and names[0] in DEVICE_WORDS:
        return (names[0],)
    devices: list[str] = []
    for name in names:
        if name in DEVICE_WORDS:
            raise ValueError(f"{name} stands alone; {allowed}")
        match = re.fullmatch(r"(?:(cpu|cuda):)?([0-9]{1,3})", name)
        if match is None or int(match[2]) > MAX_DEVICE_INDEX:
            raise ValueError(f"{name!r} is no device; {allowed}, with indices from 0 to {MAX_DEVICE_INDEX}")
        devices.append(f"{match[1] or 'cuda'}:{int(match[2])}")
        if devices.count(devices[-1]) > 1:
            raise ValueError(f"{devices[-1]} is named twice; {allowed}")
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise ValueError(f"one tree has devices of one kind; {allowed}")
    return tuple(devices)


def _model_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+", value):
        raise ValueError("allowed: letters, digits, '.', '_' and '-'")
    return value


def _grafana_url(value: str) -> str:
    """The address without a slash at its end."""
    allowed = "allowed: http:// or https://, a host, and a path where there is one, as in https://grafana.example.org"
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not match
        usable = False
    if not usable:
        raise ValueError(allowed)
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{allowed}; no user, query or fragment: the token is in grafana.token_file")
    return value.rstrip("/")


def _grafana_uid(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", value):
        raise ValueError("allowed: 1 to 40 letters, digits, '-' and '_'")
    return value


def _socket_directory(value: Path) -> Path:
    size = len(os.fsencode(value.expanduser().absolute()))
    if size > RUN_DIR_MAX_BYTES:
        raise ValueError(f"its absolute path has {size} bytes; Unix sockets in it allow at most {RUN_DIR_MAX_BYTES}")
    return value


class ModelSettings(Group):
    path: Path | None = Field(
        None, description="Hugging Face model directory; without it the demo checkpoint, written where it is missing."
    )
    name: Annotated[str, AfterValidator(_model_name)] | None = Field(
        None, description="Name in request addresses, as in NAME/layers.0; by default the directory's name."
    )
    layers: Annotated[Literal["all"] | tuple[int, ...], BeforeValidator(_layers)] = Field(
        "all", description='Decoder layers that are served: "all" MoE layers, or indices such as 0,2.'
    )
    dtype: Dtype = Field(
        Dtype.AUTO, description="Type of the served weights; auto: the checkpoint's own, float32 on the CPU."
    )


class GatewaySettings(Group):
    host: str = Field("127.0.0.1", description="Address of the gateway's HTTP server.")
    port: int = Field(8080, ge=0, le=65535, description="Port of the gateway's HTTP server; 0 takes a free one.")
    max_queue_tokens: int = Field(65536, ge=1, description="Tokens that may wait; more are answered 503.")
    max_queue_requests: int = Field(1024, ge=1, description="Requests that may wait; more are answered 503.")
    max_queue_bytes: ByteSize | None = Field(
        None,
        ge=512,  # the two areas of the smallest request
        description="Arena memory of requests that may wait, such as 64MiB; more are answered 503. Bodies that are "
        "still being read may take half of it. By default half the arena.",
    )
    request_timeout_s: float = Field(
        60.0, gt=0, description="How long a request may wait before it is answered 504; it may ask for less itself."
    )
    upload_timeout_s: float = Field(
        10.0, gt=0, description="How long a client may take to send a request's head, and its body; then 408."
    )
    retry_after_s: int = Field(1, ge=1, description="Least Retry-After of a 503, in whole seconds.")
    drain_timeout_s: float = Field(
        8.0, gt=0, description="How long requests may still take once the gateway is told to end; then 503."
    )


class WorkerSettings(Group):
    max_batch_tokens: int = Field(
        4096, ge=1, description="Most tokens of one batch, and so of one request; 64 on the CPU unless it is given."
    )
    programs: int = Field(
        0, ge=0, le=65536,
        description="SM budget: programs (CTAs) of the fused kernel; 0: as many as it is fastest with.",
    )  # fmt: skip


class ArenaSettings(Group):
    size_bytes: ByteSize = Field(
        ByteSize(256 * MIB), ge=MIB, description="Shared memory for tensors of waiting requests, such as 256MiB."
    )


def _url(value: str) -> str:
    match = re.fullmatch(r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(?:/[!-~]*)?", value)
    if match is None or int(match[2] or 0) > 65535 or "?" in value or "#" in value:
        raise ValueError("allowed: http://HOST:PORT or https://HOST:PORT, with a path or without")
    return value


class GrafanaSettings(Group):
    url: Annotated[str, AfterValidator(_grafana_url)] | None = Field(
        None, description="Address of a Grafana; `fdmoe serve` then writes an annotation there for every failover."
    )
    token_file: Path | None = Field(
        None, description="File with a token of a Grafana service account; its role Editor is enough."
    )
    folder_uid: Annotated[str, AfterValidator(_grafana_uid)] = Field(
        "fdmoe", description="Uid of the folder that the dashboards go to; it is made where there is none."
    )
    folder_title: str = Field("fdmoe", min_length=1, description="Title of that folder when it is made.")
    datasource: str | None = Field(
        None,
        min_length=1,
        description="Uid or name of the Prometheus data source that the dashboards open with; by default Grafana's.",
    )
    runbooks_url: Annotated[str, AfterValidator(_url)] | None = Field(
        None,
        description="Where your people read the runbooks (dashboards/runbooks of the sources); the dashboards' links "
        "lead there. Without it they are paths in the sources.",
    )
    timeout_s: float = Field(5.0, gt=0, description="How long Grafana may take to connect, and to answer.")
    deadline_s: float = Field(
        30.0, gt=0, description="How long `fdmoe dashboards` tries again while Grafana does not answer or is busy."
    )


class LogSettings(Group):
    format: LogFormat = Field(LogFormat.CONSOLE, description="How log lines are written.")
    level: LogLevel = Field(LogLevel.INFO, description="Least severity that is logged.")


class TracesSettings(Group):
    endpoint: Annotated[str, AfterValidator(_url)] | None = Field(
        None,
        description="OpenTelemetry collector that takes OTLP over HTTP, such as http://127.0.0.1:4318; /v1/traces is "
        "added where there is no path. Without it there are no traces. Needs fdmoe-ops[otel].",
    )
    sample_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the requests that begin a trace; of those that are part of one, all that it records.",
    )

    @property
    def url(self) -> str | None:
        """Where spans are posted to; None: nowhere."""
        if self.endpoint is None:
            return None
        return self.endpoint if urlsplit(self.endpoint).path.strip("/") else f"{self.endpoint.rstrip('/')}/v1/traces"


class Settings(Group):
    model: ModelSettings = Field(default_factory=ModelSettings, description="What is served.")
    devices: Annotated[tuple[str, ...], BeforeValidator(_devices)] = Field(
        ("auto",),
        description="Where it runs, with a pair of workers on each: cpu, cuda (the first CUDA device), all (each CUDA "
        "device), or some, such as 0,1; auto: the first CUDA device, else the CPU. cpu:0,cpu:1: two pairs on the CPU.",
    )
    gateway: GatewaySettings = Field(default_factory=GatewaySettings, description="HTTP server for requests.")
    worker: WorkerSettings = Field(default_factory=WorkerSettings, description="Processes that compute.")
    arena: ArenaSettings = Field(default_factory=ArenaSettings, description="Shared memory for tensors.")
    watchdog: WatchdogSettings = Field(default_factory=WatchdogSettings, description="The process that watches.")
    recovery: RecoverySettings = Field(
        default_factory=RecoverySettings, description="Detection of stalls and what follows."
    )
    grafana: GrafanaSettings = Field(
        default_factory=GrafanaSettings, description="Where dashboards and annotations go."
    )
    log: LogSettings = Field(default_factory=LogSettings, description="Logging.")
    traces: TracesSettings = Field(default_factory=TracesSettings, description="OpenTelemetry traces of requests.")
    run_dir: Annotated[Path, AfterValidator(_socket_directory)] | None = Field(
        None,
        description="Directory on tmpfs for sockets, beat pages, the arena and, on the CPU, the weights; by default "
        "/dev/shm/fdmoe-UID-PORT with the gateway's port.",
    )
    flight_dir: Path | None = Field(
        None, description="Directory of flight records; by default fdmoe/flights in XDG_STATE_HOME (~/.local/state)."
    )
    chaos: bool = Field(False, description="Allow `fdmoe chaos` to break kernels on purpose.")


def demo_directory() -> Path:
    """Where the demo checkpoint is kept: fdmoe/demo-qwen3-moe in XDG_CACHE_HOME (~/.cache)."""
    return _xdg("XDG_CACHE_HOME", ".cache") / "fdmoe" / "demo-qwen3-moe"


def run_directory(settings: Settings) -> Path:
    """The run directory of the tree that these settings start, resolved or not."""
    if settings.run_dir is not None:
        return settings.run_dir.expanduser().absolute()
    return Path(f"/dev/shm/fdmoe-{os.getuid()}-{settings.gateway.port}")


def flight_directory(settings: Settings) -> Path:
    """Where the tree that these settings start keeps its flight records, resolved or not."""
    directory = settings.flight_dir or _xdg("XDG_STATE_HOME", ".local/state") / "fdmoe" / "flights"
    return directory.expanduser().absolute()


def resolve(settings: Settings, devices: tuple[str, ...]) -> Settings:
    """The same tree with a concrete value for every "auto" and None, for the devices that were found.

    Values that were given explicitly are kept. Raises SettingsError where they contradict each other or the devices,
    or where `model.dtype` must be read from a checkpoint that is not there.
    """
    model = settings.model
    path = (model.path.expanduser() if model.path else demo_directory()).absolute()
    name = model.name or re.sub(r"[^A-Za-z0-9._-]", "-", path.name)
    branches = {
        "model": model.model_copy(update={"path": path, "name": name, "dtype": _dtype(model, path, devices)}),
        "gateway": _gateway(settings.gateway, settings.arena),
        "worker": _defaults_for(settings.worker, {"max_batch_tokens": 64} if are_cpu(devices) else {}),
        "recovery": _recovery(settings.recovery, devices),
    }
    _check_probe(settings.watchdog, settings.recovery)
    values = {
        "devices": devices,
        "run_dir": run_directory(settings),
        "flight_dir": flight_directory(settings),
    }
    return settings.model_copy(update=branches | values)


def write(settings: Settings, path: Path) -> None:
    """Write the tree as JSON for the children, readable by this user alone (mode 0600). The file must not exist yet."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(settings.model_dump_json(indent=2))


def read(path: Path) -> Settings:
    """The tree that `write` wrote. Raises OSError, or pydantic.ValidationError when it is another program's file."""
    return Settings.model_validate_json(path.read_bytes())


def _gateway(gateway: GatewaySettings, arena: ArenaSettings) -> GatewaySettings:
    """Half the arena is left for what workers have in hand, and for outputs that a fenced one may still write to."""
    if gateway.max_queue_bytes is None:
        return gateway.model_copy(update={"max_queue_bytes": ByteSize(arena.size_bytes // 2)})
    if gateway.max_queue_bytes > arena.size_bytes:
        raise SettingsError(
            f"gateway.max_queue_bytes is {gateway.max_queue_bytes}; at most arena.size_bytes, {arena.size_bytes}, "
            "is allowed"
        )
    return gateway


def _recovery(recovery: RecoverySettings, devices: tuple[str, ...]) -> RecoverySettings:
    """On the CPU the interpreter needs 4 to 7 ms for a 64x64x64 dot product, so a work item is slow and not stuck; and
    its pace is taken in the thread's own time, which no neighbour changes. A host thread waits for its processor behind
    the interpreters of the others."""
    given = recovery.model_fields_set
    if are_cpu(devices):
        stall = {"stall_floor_s": 2.0, "stall_first_s": 5.0, "stall_ceiling_s": 10.0, "abort_deadline_s": 1.0}
        host = dict.fromkeys(("host_deadline_s", "route_deadline_s"), recovery.answer_deadline_s)
        recovery = _defaults_for(recovery, {**stall, **host, "slow_checks": 3, "spare_process": False})
    floor, ceiling = recovery.stall_floor_s, recovery.stall_ceiling_s
    if floor > ceiling:
        if {"stall_floor_s", "stall_ceiling_s"} <= given:
            raise SettingsError(
                f"recovery.stall_floor_s is {floor:g}; at most recovery.stall_ceiling_s, {ceiling:g}, is allowed"
            )
        # the default follows the value that was given
        follower = {"stall_ceiling_s": floor} if "stall_floor_s" in given else {"stall_floor_s": ceiling}
        recovery = recovery.model_copy(update=follower)
    return recovery


def _check_probe(watchdog: WatchdogSettings, recovery: RecoverySettings) -> None:
    """After a worker's death the next reading says whether its memory is back; it must come before the deadline."""
    interval_s, deadline_s = watchdog.gpu_interval_s, recovery.reclaim_deadline_s
    if 2 * interval_s > deadline_s:
        raise SettingsError(
            f"watchdog.gpu_interval_s is {interval_s:g}; at most half of recovery.reclaim_deadline_s, {deadline_s:g}, "
            "is allowed: the next reading must say in time that a dead worker's memory is back"
        )


def _dtype(model: ModelSettings, path: Path, devices: tuple[str, ...]) -> Dtype:
    if are_cpu(devices):
        if model.dtype is Dtype.BFLOAT16:
            raise SettingsError(
                "model.dtype is bfloat16; on the CPU float32 is allowed: Triton's interpreter computes wrong bfloat16"
            )
        return Dtype.FLOAT32 if model.dtype is Dtype.AUTO else model.dtype
    if model.dtype is not Dtype.AUTO:
        return model.dtype
    if model.path is None:
        return Dtype.FLOAT32  # the demo checkpoint's own
    return _stored_dtype(path / "config.json")


def _stored_dtype(config_file: Path) -> Dtype:
    """What config.json says its weights are; older files say torch_dtype, and none at all means float32."""
    try:
        config = json.loads(config_file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"model.dtype is auto, and the checkpoint does not say its own: {error}") from error
    stored = (config.get("dtype") or config.get("torch_dtype") or "float32") if isinstance(config, dict) else config
    allowed = [dtype for dtype in Dtype if dtype is not Dtype.AUTO]
    if stored not in allowed:
        raise SettingsError(
            f"model.dtype is auto, and {config_file} says {stored!r}; allowed: {', '.join(allowed)}: give one"
        )
    return Dtype(stored)


def _defaults_for(branch: BranchT, values: dict[str, Any]) -> BranchT:
    """The branch with other values for what was not given explicitly."""
    given = branch.model_fields_set
    return branch.model_copy(update={name: value for name, value in values.items() if name not in given})


def _xdg(variable: str, default: str) -> Path:
    """A base directory; the XDG specification says that relative values are to be ignored."""
    value = Path(os.environ.get(variable, ""))
    return value if value.is_absolute() else Path.home() / default
