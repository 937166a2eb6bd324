"""From settings to the plan of a tree, and what the process that becomes the watchdog may not hold."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fdmoe_ops import settings as tree
from fdmoe_ops.annotator.chronicle import EVENTS
from fdmoe_ops.checkpoint.config import read_config
from fdmoe_ops.cli import app
from fdmoe_ops.cli.first_request import FirstRequest
from fdmoe_ops.cli.serve import tree_plan
from fdmoe_ops.demo import CONFIG
from fdmoe_ops.settings import Settings
from fdmoe_watchdog.plan import TreePlan

IMPORTS = ("torch", "triton", "numpy", "ml_dtypes", "safetensors")


def _resolved(
    directory: Path, devices: tuple[str, ...] = ("cpu",), config: dict[str, object] | None = None, **model: object
) -> Settings:
    (directory / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    values = {"model": {"path": directory, "name": "demo", **model}, "run_dir": directory / "run"}
    return tree.resolve(Settings.model_validate(values), devices)


def _plan(directory: Path, devices: tuple[str, ...] = ("cpu",), environment: dict[str, str] | None = None) -> TreePlan:
    return tree_plan(_resolved(directory, devices), environment or {}, {})


def test_the_plan_of_a_tree(tmp_path: Path) -> None:
    settings = _resolved(tmp_path)
    plan = tree_plan(settings, {}, {})
    file = str(tmp_path / "run" / "settings.json")
    assert plan.worker_command == (sys.executable, "-m", "fdmoe_ops.worker", "--settings", file)
    assert plan.gateway_command == (sys.executable, "-m", "fdmoe_ops.gateway", "--settings", file)
    assert (plan.run_dir, plan.flight_dir) == (settings.run_dir, settings.flight_dir)
    assert (plan.devices, plan.arena_bytes, plan.chaos) == (("cpu",), 256 * 2**20, False)
    assert (plan.watchdog, plan.recovery) == (settings.watchdog, settings.recovery)


def test_nvml_is_asked_by_uuid_and_a_recording_stands_for_it_where_there_is_none(tmp_path: Path) -> None:
    assert _plan(tmp_path).probe is None
    settings = _resolved(tmp_path, ("cuda:0", "cuda:1"), {"dtype": "float32"})
    plan = tree_plan(settings, {}, {"cuda:0": "GPU-a", "cuda:1": "GPU-b"})
    assert plan.probe is not None
    assert (plan.probe.devices, plan.probe.recorded) == ({"cuda:0": "GPU-a", "cuda:1": "GPU-b"}, None)
    recorded = settings.watchdog.model_copy(update={"gpu_recording": tmp_path / "recording.json"})
    settings = _resolved(tmp_path).model_copy(update={"watchdog": recorded})
    plan = tree_plan(settings, {}, {"cpu": ""})
    assert plan.probe is not None
    assert (plan.probe.devices, plan.probe.recorded) == ({"cpu": "0"}, tmp_path / "recording.json")


def test_an_annotator_is_planned_where_a_grafana_is_configured(tmp_path: Path) -> None:
    assert _plan(tmp_path).annotator is None
    settings = _resolved(tmp_path)
    grafana = settings.grafana.model_copy(update={"url": "http://127.0.0.1:3000"})
    plan = tree_plan(settings.model_copy(update={"grafana": grafana}), {}, {})
    assert plan.annotator is not None
    file = str(tmp_path / "run" / "settings.json")
    assert plan.annotator.command == (sys.executable, "-m", "fdmoe_ops.annotator", "--settings", file)
    assert (plan.annotator.environment, plan.annotator.events) == (plan.environment, EVENTS)


def test_a_grafana_without_a_token_is_a_mistake_before_anything_starts(tmp_path: Path) -> None:
    token = tmp_path / "token"
    flags = ("--devices", "cpu", "--grafana-url", "http://127.0.0.1:3000", "--grafana-token-file", str(token))
    result = CliRunner().invoke(app, ["serve", *flags])
    assert (result.exit_code, result.stderr) == (
        2, f"error: grafana.token_file is {token}: No such file or directory\n"
    )  # fmt: skip


def test_prepare_writes_what_the_children_read(tmp_path: Path) -> None:
    settings = _resolved(tmp_path)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    tree_plan(settings, {}, {}).prepare(run_dir)
    assert tree.read(run_dir / "settings.json") == settings


@pytest.mark.parametrize(
    ("devices", "environment", "additions"),
    [
        (("cpu",), {}, {"PYTHONSAFEPATH": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}),
        (
            ("cpu:0", "cpu:1"),
            {"OMP_NUM_THREADS": "8"},
            {"PYTHONSAFEPATH": "1", "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "8"},
        ),
        (("cuda:0", "cuda:1"), {}, {"PYTHONSAFEPATH": "1"}),
    ],
)
def test_the_childrens_environment(
    devices: tuple[str, ...], environment: dict[str, str], additions: dict[str, str], tmp_path: Path
) -> None:
    assert _plan(tmp_path, devices, environment).environment == additions


def test_both_addresses_are_announced_with_a_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = _resolved(tmp_path)
    tree_plan(settings, {}, {}).announce("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert capsys.readouterr().out == (
        "gateway   http://127.0.0.1:1   (demo on cpu)\n"
        "watchdog  http://127.0.0.1:2   (status page; metrics: http://127.0.0.1:2/metrics)\n"
        "\n"
        "A first request:\n"
        "\n"
        f"{FirstRequest.read(settings).curl('http://127.0.0.1:1')}\n"
        "\n"
    )


def test_several_devices_are_planned_and_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(tmp_path, ("cuda:0", "cuda:2"))
    assert plan.devices == ("cuda:0", "cuda:2")
    plan.announce("http://127.0.0.1:1", "http://127.0.0.1:2")
    assert capsys.readouterr().out.splitlines()[0] == "gateway   http://127.0.0.1:1   (demo on cuda:0, cuda:2)"


def test_the_request_can_be_pasted(tmp_path: Path) -> None:
    command = FirstRequest.read(_resolved(tmp_path, ("cuda:0",), dtype="bfloat16")).curl("http://127.0.0.1:1")
    # a function stands for curl: it shows what would be sent and where
    script = 'curl() { cat; printf "%s\\n" "$@"; }\n' + command
    done = subprocess.run(("bash", "-c", script), capture_output=True, text=True, timeout=30, check=True)
    body, *arguments = done.stdout.splitlines()
    assert json.loads(body) == {
        "inputs": [{"name": "hidden_states", "datatype": "BF16", "shape": [1, 64], "data": [0.5] * 64}]
    }
    assert arguments == [
        "--silent",
        "--data",
        "@-",
        "--header",
        "Content-Type: application/json",
        "http://127.0.0.1:1/v2/models/demo/layers.0/infer",
    ]


@pytest.mark.parametrize(
    ("config", "layers", "first"),
    [
        ({}, "all", 0),
        ({}, "3,1", 1),
        ({"decoder_sparse_step": 2}, "all", 1),
        ({"mlp_only_layers": [0, 1]}, "all", 2),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, "all", 3),
        ({"mlp_only_layers": None, "decoder_sparse_step": None}, "all", 0),
    ],
)
def test_the_request_is_for_the_first_served_layer(
    config: dict[str, object], layers: str, first: int, tmp_path: Path
) -> None:
    request = FirstRequest.read(_resolved(tmp_path, config=config, layers=layers))
    assert request.layer == first
    assert request.curl("http://x").splitlines()[-1].strip() == f"http://x/v2/models/demo/layers.{first}/infer"


def test_the_first_layer_is_the_checkpoints(tmp_path: Path) -> None:
    for step, dense in ((1, []), (2, [1]), (1, [0, 2])):
        config = {**CONFIG, "decoder_sparse_step": step, "mlp_only_layers": dense}
        settings = _resolved(tmp_path, config=config)
        assert FirstRequest.read(settings).layer == read_config(tmp_path / "config.json").moe_layers[0]


def test_a_hidden_size_that_config_json_leaves_out_can_be_asked_for(tmp_path: Path) -> None:
    request = FirstRequest.read(_resolved(tmp_path, config={"hidden_size": None}))
    assert request.curl("http://x") == "curl --silent http://x/v2/models/demo/layers.0"


def test_a_directory_that_is_no_checkpoint(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--devices", "cpu", "--model-path", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: model.path is {tmp_path}; no config.json can be read: "
        f"[Errno 2] No such file or directory: '{tmp_path}/config.json'\n"
    )


def test_the_exit_code_is_the_trees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _resolved(tmp_path)
    plans: list[TreePlan] = []

    def run(plan: TreePlan) -> int:
        plans.append(plan)
        return 70

    monkeypatch.setattr("fdmoe_watchdog.supervisor.run", run)
    arguments = (
        "--model-path",
        str(tmp_path),
        "--devices",
        "cpu",
        "--run-dir",
        str(tmp_path / "run"),
        "--enable-chaos",
    )
    assert CliRunner().invoke(app, ["serve", *arguments]).exit_code == 70
    assert [(plan.devices, plan.chaos, plan.run_dir) for plan in plans] == [(("cpu",), True, tmp_path / "run")]


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["serve", "--devices", "cpu", "--model-path", str(tmp_path / "absent")])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: model.path is {tmp_path}/absent; a Hugging Face model directory is needed, and there is none\n"
    )


def test_a_port_that_is_taken(tmp_path: Path, in_memory: Path) -> None:
    _resolved(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ("--run-dir", in_memory / "run", "--watchdog-port", port, "--arena-size-bytes", "1MiB")
        result = CliRunner().invoke(
            app, ["serve", "--devices", "cpu", "--model-path", str(tmp_path), *map(str, arguments)]
        )
    assert result.exit_code == 2
    assert result.stderr.startswith(
        f"error: the watchdog cannot listen on 127.0.0.1:{port} (watchdog.host, .port): [Errno 98]"
    )
    assert not (in_memory / "run").exists()


def test_traces_without_the_extra(tmp_path: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "opentelemetry-sdk":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr("fdmoe_ops.cli.serve.metadata.version", version)
    arguments = [
        "serve", "--model-path", str(_resolved(tmp_path).model.path), "--devices", "cpu", "--run-dir", str(in_memory),
        "--traces-endpoint", "http://127.0.0.1:4318",
    ]  # fmt: skip
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "error: traces.endpoint is http://127.0.0.1:4318, and opentelemetry-sdk is not installed: "
        "pip install 'fdmoe-ops[otel]'"
    )


def test_a_run_directory_that_is_not_to_be_had(tmp_path: Path, in_memory: Path) -> None:
    _resolved(tmp_path)
    # tmp_path may be too long for sockets
    (in_memory / "file").touch()
    result = CliRunner().invoke(
        app, ["serve", "--devices", "cpu", "--model-path", str(tmp_path), "--run-dir", str(in_memory / "file" / "run")]
    )
    assert result.exit_code == 2
    assert result.stderr == f"error: run_dir cannot be used: {in_memory}/file/run: Not a directory\n"


def test_the_process_that_becomes_the_watchdog_holds_no_torch(tmp_path: Path) -> None:
    """The whole way to the supervisor, demo checkpoint included, in a process of its own."""
    script = f"""
import sys
from fdmoe_ops.cli import main
from fdmoe_watchdog import supervisor

def run(plan):
    print("held:", sorted(set({IMPORTS!r}) & sys.modules.keys()))
    return 7

supervisor.run = run
sys.argv = ["fdmoe", "serve", "--devices", "cpu", "--run-dir", {str(tmp_path / "run")!r}]
main()
"""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        (sys.executable, "-P", "-c", script), capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.splitlines()[-1] == "held: []"
    config = json.loads((tmp_path / "cache/fdmoe/demo-qwen3-moe/config.json").read_bytes())
    assert config["hidden_size"] == 64


def test_version_needs_no_torch_either() -> None:
    script = f"""
import sys
from fdmoe_ops.cli import main
sys.argv = ["fdmoe", "version"]
try:
    main()
finally:
    print("held:", sorted(set({IMPORTS!r}) & sys.modules.keys()))
"""
    done = subprocess.run((sys.executable, "-P", "-c", script), capture_output=True, text=True, timeout=60, check=True)
    version, held = done.stdout.splitlines()
    assert version.startswith("fdmoe 0")
    assert held == "held: []"


def test_a_demo_model_does_not_replace_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    result = CliRunner().invoke(app, ["demo-model", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert str(tmp_path) in result.stderr
    assert (tmp_path / "mine").read_text() == "precious"
