"""Where settings come from: flags over the environment over a YAML file over defaults, one spelling rule for all."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from pathlib import Path

import pytest
import yaml
from pydantic import ByteSize
from typer.testing import CliRunner, Result

from fdmoe_ops.cli import app
from fdmoe_ops.cli.options import Option, all_options
from fdmoe_ops.cli.sources import load
from fdmoe_ops.settings import SettingsError

OPTIONS = {option.key: option for option in all_options()}


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.startswith(("FDMOE_", "XDG_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "fdmoe.yaml"


def _show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["config", "show", "--devices", "cpu", *map(str, arguments)])


def _effective(*arguments: str | Path) -> dict[str, dict[str, object]]:
    result = _show("--format", "json", *arguments)
    assert result.exit_code == 0, result.output
    effective: dict[str, dict[str, object]] = json.loads(result.stdout)
    return effective


def _another_value(option: Option) -> str:
    """Text that is valid for the option and not its default."""
    special = {
        "devices": "cuda:3,cuda:1",
        "gateway.max_queue_bytes": "3MiB",
        "grafana.runbooks_url": "https://wiki.example.org/runbooks",
        "grafana.url": "http://127.0.0.1:3000/grafana",
        "model.layers": "0,2",
        "run_dir": "/dev/shm/another",
        "watchdog.poll_interval_s": "0.01",
        "recovery.compare_ratio": "0.5",
        "traces.endpoint": "http://127.0.0.1:4318",
        "traces.sample_ratio": "0.5",
    }
    if option.key in special:
        return special[option.key]
    default, annotation = option.field.default, option.field.annotation
    if isinstance(default, bool):
        return str(not default).lower()
    if isinstance(default, StrEnum):
        return next(member.value for member in type(default) if member is not default)
    if isinstance(default, int | float):
        return str(default + 1) if annotation is not ByteSize else "3MiB"
    return "/somewhere" if annotation == Path | None else "something"


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_three_spellings_of_an_option_mean_the_same(
    option: Option, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _another_value(option)
    tree: object = text
    for key in reversed(option.keys):
        tree = {key: tree}
    file.write_text(yaml.safe_dump(tree))
    by_file = load({}, file)
    by_flag = load({option.keys: text}, None)
    monkeypatch.setenv(option.variable, text)
    by_variable = load({}, None)
    values = [option.value_in(loaded.settings) for loaded in (by_file, by_flag, by_variable)]
    assert values[0] == values[1] == values[2] != option.field.default
    origins = [dict(loaded.origins) for loaded in (by_file, by_flag, by_variable)]
    assert origins == [{option.key: str(file)}, {option.key: "a flag"}, {option.key: "the environment"}]


def test_spellings() -> None:
    assert OPTIONS["recovery.stall_floor_s"].spellings == (
        "--recovery-stall-floor-s, FDMOE_RECOVERY__STALL_FLOOR_S, or recovery.stall_floor_s in the YAML file"
    )
    assert OPTIONS["chaos"].spellings == (
        "--enable-chaos/--disable-chaos, FDMOE_CHAOS, or chaos in the YAML file"
    )  # fmt: skip
    assert len({option.flag for option in OPTIONS.values()}) == len(OPTIONS)


def test_every_option_is_described_with_a_sentence() -> None:
    assert [key for key, option in OPTIONS.items() if not (option.field.description or "").endswith(".")] == []


def test_every_option_is_in_the_help() -> None:
    help_text = CliRunner().invoke(app, ["serve", "--help"]).output
    assert [key for key, option in OPTIONS.items() if f" {option.flag} " not in help_text] == []
    assert "gateway: HTTP server for requests." in help_text
    assert "(default: 8080)" in help_text
    assert "(default: auto)" in help_text


def test_the_nearer_source_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("gateway:\n  port: 1\n  host: 10.0.0.1\n")
    assert _effective()["gateway"]["port"] == 8080
    assert _effective("--config", file)["gateway"]["port"] == 1
    monkeypatch.setenv("FDMOE_GATEWAY__PORT", "2")
    assert _effective("--config", file)["gateway"]["port"] == 2
    effective = _effective("--config", file, "--gateway-port", "3")
    # the rest of the group still comes from the file
    assert (effective["gateway"]["port"], effective["gateway"]["host"]) == (3, "10.0.0.1")


def test_a_switch_can_be_turned_off_again(file: Path) -> None:
    file.write_text("chaos: true\n")
    assert _effective("--config", file)["chaos"] is True
    assert _effective("--config", file, "--disable-chaos")["chaos"] is False
    assert _effective("--enable-chaos")["chaos"] is True


def test_the_file_can_be_named_by_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("gateway: {port: 4}\n")
    monkeypatch.setenv("FDMOE_CONFIG", str(file))
    assert _effective()["gateway"]["port"] == 4


@pytest.mark.parametrize("text", ["", "# nothing\n", "gateway:\n  # port: 1\n"])
def test_a_file_or_group_may_be_empty(text: str, file: Path) -> None:
    file.write_text(text)
    assert _effective("--config", file) == _effective()


def test_an_empty_variable_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDMOE_GATEWAY__PORT", "")
    assert _effective()["gateway"]["port"] == 8080


def test_variables_of_kubernetes_service_links_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDMOE_OPS_PORT", "tcp://10.0.0.1:8080")
    monkeypatch.setenv("FDMOE_OPS_SERVICE_HOST", "10.0.0.1")
    assert _effective() == {**_effective(), "devices": ["cpu"]}


def test_every_bad_value_has_its_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("gateway: {prot: 1, port: 99999}\nmodel: {layers: [a], dtype: int8}\nfoo: 1\n")
    monkeypatch.setenv("FDMOE_ARENA__SIZE_BYTES", "5")
    result = _show("--config", file, "--worker-programs", "x")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"error: model.layers is ['a'] (from {file}): allowed: \"all\", or layer indices from 0 such as 0,2 "
        "[--model-layers, FDMOE_MODEL__LAYERS, or model.layers in the YAML file]",
        f"error: model.dtype is 'int8' (from {file}): input should be 'auto', 'float32', 'bfloat16' or 'float16' "
        "[--model-dtype, FDMOE_MODEL__DTYPE, or model.dtype in the YAML file]",
        f"error: gateway.port is 99999 (from {file}): input should be less than or equal to 65535 "
        "[--gateway-port, FDMOE_GATEWAY__PORT, or gateway.port in the YAML file]",
        f"error: gateway.prot (from {file}) is no option. Did you mean gateway.port? There are: gateway.host, "
        "gateway.port, gateway.max_queue_tokens, gateway.max_queue_requests, gateway.max_queue_bytes, "
        "gateway.request_timeout_s, gateway.upload_timeout_s, gateway.retry_after_s, gateway.drain_timeout_s",
        "error: worker.programs is 'x' (from a flag): input should be a valid integer, unable to parse string as an "
        "integer [--worker-programs, FDMOE_WORKER__PROGRAMS, or worker.programs in the YAML file]",
        "error: arena.size_bytes is '5' (from the environment): input should be greater than or equal to 1048576 "
        "[--arena-size-bytes, FDMOE_ARENA__SIZE_BYTES, or arena.size_bytes in the YAML file]",
        f"error: foo (from {file}) is no option. There are: model, devices, gateway, worker, arena, watchdog, "
        "recovery, grafana, log, traces, run_dir, flight_dir, chaos",
    ]


def test_a_variable_of_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDMOE_GATWAY__PORT", "1")
    with pytest.raises(SettingsError) as error:
        load({}, None)
    assert str(error.value) == (
        "FDMOE_GATWAY__PORT is set, and gatway is no group of options; there are: "
        "model, gateway, worker, arena, watchdog, recovery, grafana, log, traces"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway: [", "is not YAML: while parsing"),
        ("- 1\n", "holds a list; groups of options are needed, as in `gateway:`"),
        ("gateway: 8080\n", "gateway is 8080 (from"),
        ("1: 2\n", "1 is 1 (from"),
    ],
)
def test_a_file_that_is_no_tree(text: str, message: str, file: Path) -> None:
    file.write_text(text)
    result = _show("--config", file)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_a_file_that_is_not_there(file: Path) -> None:
    result = _show("--config", file)
    assert result.exit_code == 2
    assert result.stderr == f"error: settings file cannot be read: [Errno 2] No such file or directory: '{file}'\n"


def test_values_that_contradict_each_other() -> None:
    result = _show("--recovery-stall-floor-s", "3", "--recovery-stall-ceiling-s", "1")
    assert result.exit_code == 2
    assert result.stderr == "error: recovery.stall_floor_s is 3; at most recovery.stall_ceiling_s, 1, is allowed\n"


def test_show_says_where_values_come_from(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("model: {layers: [0, 2]}\n")
    monkeypatch.setenv("FDMOE_GATEWAY__PORT", "9")
    lines = _show("--config", file, "--log-level", "debug").stdout.splitlines()
    assert lines[0] == "model:"
    assert {
        f"  layers: [0, 2]  # from {file}",
        "  dtype: float32  # resolved for cpu",
        "devices: [cpu]  # from a flag",
        "  host: 127.0.0.1",
        "  port: 9  # from the environment",
        "  max_batch_tokens: 64  # resolved for cpu",
        "  level: debug  # from a flag",
        f"run_dir: /dev/shm/fdmoe-{os.getuid()}-9  # resolved for cpu",
        "chaos: false",
    } <= set(lines)


def test_several_devices(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _show("--devices", "cpu:0,cpu:1").stdout
    lines = shown.splitlines()
    assert {
        "devices: ['cpu:0', 'cpu:1']  # from a flag",
        "  dtype: float32  # resolved for cpu:0, cpu:1",
        "  max_batch_tokens: 64  # resolved for cpu:0, cpu:1",
    } <= set(lines)
    file.write_text(shown)
    assert load({}, file).settings.devices == ("cpu:0", "cpu:1")
    monkeypatch.setenv("FDMOE_DEVICES", "0,2")
    assert load({}, file).settings.devices == ("cuda:0", "cuda:2")
    assert load({("devices",): "all"}, file).settings.devices == ("all",)


def test_devices_of_two_kinds(file: Path) -> None:
    file.write_text("devices: [0, cpu:1]\n")
    result = CliRunner().invoke(app, ["config", "show", "--config", str(file)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: devices is [0, 'cpu:1'] (from {file}): one tree has devices of one kind; allowed: auto, cpu, cuda, "
        "all, indices of GPUs such as 0,1 or cuda:0,cuda:1, or cpu:0,cpu:1 "
        "[--devices, FDMOE_DEVICES, or devices in the YAML file]\n"
    )


def test_the_old_spelling_is_told_the_new_one(file: Path) -> None:
    file.write_text("device: cpu\n")
    result = _show("--config", file)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: device (from {file}) is no option. Did you mean devices? There are: ")


def test_what_is_shown_is_a_settings_file_that_says_the_same(file: Path) -> None:
    arguments = ("--model-layers", "3", "--arena-size-bytes", "2MiB", "--flight-dir", "/a: b # c", "--enable-chaos")
    file.write_text(_show(*arguments).stdout)
    assert _effective("--config", file) == _effective(*arguments)
