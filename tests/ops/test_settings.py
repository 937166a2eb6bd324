"""The settings tree itself: values, bounds, and what `resolve` makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fdmoe_kernels.fused import MOST_PROGRAMS
from fdmoe_ops import settings as tree
from fdmoe_ops.settings import Dtype, Settings, SettingsError
from fdmoe_watchdog.supervisor import names_of


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


def _settings(**branches: object) -> Settings:
    return Settings.model_validate(branches)


def _model(directory: Path, config: dict[str, object]) -> Settings:
    (directory / "config.json").write_text(json.dumps(config))
    return _settings(model={"path": directory})


def test_defaults() -> None:
    assert json.loads(Settings().model_dump_json(exclude={"watchdog", "recovery"})) == {
        "model": {"path": None, "name": None, "layers": "all", "dtype": "auto"},
        "devices": ["auto"],
        "gateway": {
            "host": "127.0.0.1",
            "port": 8080,
            "max_queue_tokens": 65536,
            "max_queue_requests": 1024,
            "max_queue_bytes": None,
            "request_timeout_s": 60.0,
            "upload_timeout_s": 10.0,
            "retry_after_s": 1,
            "drain_timeout_s": 8.0,
        },
        "worker": {"max_batch_tokens": 4096, "programs": 0},
        "arena": {"size_bytes": 256 * 1024 * 1024},
        "grafana": {
            "url": None,
            "token_file": None,
            "folder_uid": "fdmoe",
            "folder_title": "fdmoe",
            "datasource": None,
            "runbooks_url": None,
            "timeout_s": 5.0,
            "deadline_s": 30.0,
        },
        "log": {"format": "console", "level": "info"},
        "traces": {"endpoint": None, "sample_ratio": 0.01},
        "run_dir": None,
        "flight_dir": None,
        "chaos": False,
    }


def test_the_tree_is_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.chaos = True  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.gateway.port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ("all", "all"),
        ("3", (3,)),
        ("0,2", (0, 2)),
        (" 0 , 2 ", (0, 2)),
        ([0, 2], (0, 2)),
        (["0", "2"], (0, 2)),
        (7, (7,)),
    ],
)
def test_layers(written: object, layers: object) -> None:
    assert _settings(model={"layers": written}).model.layers == layers


@pytest.mark.parametrize("written", ["", "0,", "none", "-1", "0;2", [], [-1], ["a"], [1.5], True, {"a": 1}, None])
def test_layers_that_are_none(written: object) -> None:
    with pytest.raises(ValidationError, match='allowed: "all", or layer indices from 0 such as 0,2'):
        _settings(model={"layers": written})


def test_a_layer_is_named_once() -> None:
    with pytest.raises(ValidationError, match="a layer is named twice"):
        _settings(model={"layers": "1,2,1"})


@given(st.lists(st.integers(0, 10_000), min_size=1, unique=True))
def test_layers_survive_the_childrens_file(layers: list[int]) -> None:
    settings = _settings(model={"layers": ",".join(map(str, layers))})
    assert Settings.model_validate_json(settings.model_dump_json()).model.layers == tuple(layers)


@pytest.mark.parametrize(
    ("written", "size"), [("1MiB", 2**20), ("256MiB", 2**28), ("2GB", 2 * 10**9), (1048576, 2**20)]
)
def test_arena_size(written: object, size: int) -> None:
    assert _settings(arena={"size_bytes": written}).arena.size_bytes == size


@pytest.mark.parametrize(
    ("written", "devices"),
    [
        ("auto", ("auto",)),
        ("cpu", ("cpu",)),
        ("cuda", ("cuda",)),
        ("all", ("all",)),
        (["cpu"], ("cpu",)),
        ("0", ("cuda:0",)),
        (1, ("cuda:1",)),
        ("0,1", ("cuda:0", "cuda:1")),
        ([0, 1], ("cuda:0", "cuda:1")),
        ("cuda:0", ("cuda:0",)),
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        (" 3 , cuda:1 ", ("cuda:3", "cuda:1")),
        (["cuda:011"], ("cuda:11",)),
        ("cpu:0,cpu:1", ("cpu:0", "cpu:1")),
        (("cpu:127",), ("cpu:127",)),
    ],
)
def test_devices(written: object, devices: tuple[str, ...]) -> None:
    assert _settings(devices=written).devices == devices


DEVICES_ALLOWED = "allowed: auto, cpu, cuda, all, indices of GPUs such as 0,1 or cuda:0,cuda:1, or cpu:0,cpu:1"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("gpu", f"'gpu' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("CPU", f"'CPU' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("", f"'' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("0,", f"'' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("cuda:", f"'cuda:' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("0,cuda:-1", f"'cuda:-1' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("cpu:128", f"'cpu:128' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        (-1, f"'-1' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        (True, f"'True' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ([1.0], f"'1.0' is no device; {DEVICES_ALLOWED}, with indices from 0 to 127"),
        ("0,0", f"cuda:0 is named twice; {DEVICES_ALLOWED}"),
        ("1,0,cuda:1", f"cuda:1 is named twice; {DEVICES_ALLOWED}"),
        ("cpu:0,cpu:1,cpu:0", f"cpu:0 is named twice; {DEVICES_ALLOWED}"),
        ("cpu:0,1", f"one tree has devices of one kind; {DEVICES_ALLOWED}"),
        ("cuda:0,cpu:0", f"one tree has devices of one kind; {DEVICES_ALLOWED}"),
        ("cpu,cpu:1", f"cpu stands alone; {DEVICES_ALLOWED}"),
        ("0,all", f"all stands alone; {DEVICES_ALLOWED}"),
        ([], DEVICES_ALLOWED),
        (None, DEVICES_ALLOWED),
        ({"cuda": 0}, DEVICES_ALLOWED),
    ],
)
def test_devices_that_are_none(written: object, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        _settings(devices=written)
    (found,) = error.value.errors()
    assert (found["loc"], found["input"], str(found["ctx"]["error"])) == (("devices",), written, message)


def test_the_setting_of_one_device_is_gone() -> None:
    with pytest.raises(ValidationError) as error:
        _settings(device="cpu")
    assert [(found["loc"], found["type"]) for found in error.value.errors()] == [(("device",), "extra_forbidden")]


def test_a_run_dir_has_room_for_socket_names() -> None:
    assert _settings(run_dir="/" + "x" * 77).run_dir == Path("/" + "x" * 77)
    with pytest.raises(ValidationError, match="its absolute path has 79 bytes; Unix sockets in it allow at most 78"):
        _settings(run_dir="/" + "x" * 78)


def test_the_longest_name_of_a_socket_fits() -> None:
    worker, _, _ = names_of(tree.MAX_DEVICE_INDEX, tree.MAX_DEVICE_INDEX + 1)
    assert tree.RUN_DIR_MAX_BYTES + len(f"/worker-{worker}-g{2**32 - 1}.sock") == 107


def test_resolved_for_the_cpu(tmp_path: Path) -> None:
    settings = tree.resolve(Settings(), ("cpu",))
    assert settings.devices == ("cpu",)
    assert settings.model.path == tmp_path / "home/.cache/fdmoe/demo-qwen3-moe"
    assert settings.model.name == "demo-qwen3-moe"
    assert settings.model.dtype is Dtype.FLOAT32
    assert settings.worker.max_batch_tokens == 64
    assert settings.recovery.stall_floor_s == 2.0
    assert settings.recovery.stall_first_s == 5.0
    assert settings.recovery.stall_ceiling_s == 10.0
    assert settings.recovery.abort_deadline_s == 1.0
    assert settings.recovery.slow_checks == 3
    assert settings.recovery.host_deadline_s == settings.recovery.answer_deadline_s == 10.0
    assert settings.recovery.route_deadline_s == 10.0
    assert settings.run_dir == Path(f"/dev/shm/fdmoe-{os.getuid()}-8080")
    assert settings.flight_dir == tmp_path / "home/.local/state/fdmoe/flights"


def test_what_depends_on_the_device_depends_on_the_kind_of_all() -> None:
    one, two = (tree.resolve(Settings(), devices) for devices in (("cpu",), ("cpu:0", "cpu:1")))
    assert two.devices == ("cpu:0", "cpu:1")
    assert two.model_copy(update={"devices": ("cpu",)}) == one
    one, two = (tree.resolve(Settings(), devices) for devices in (("cuda:0",), ("cuda:0", "cuda:1")))
    assert two.devices == ("cuda:0", "cuda:1")
    assert two.model_copy(update={"devices": ("cuda:0",)}) == one


def test_resolved_for_a_gpu_without_a_model() -> None:
    settings = tree.resolve(Settings(), ("cuda:1",))
    assert settings.devices == ("cuda:1",)
    assert settings.model.dtype is Dtype.FLOAT32
    assert settings.worker == Settings().worker
    assert settings.recovery == Settings().recovery


def test_values_that_were_given_are_kept_even_when_they_equal_a_default() -> None:
    settings = _settings(
        model={"name": "mine", "dtype": "float16"},
        worker={"max_batch_tokens": 4096},
        recovery={
            "stall_floor_s": 0.05,
            "stall_first_s": 0.25,
            "stall_ceiling_s": 5.0,
            "abort_deadline_s": 0.05,
            "slow_checks": 50,
            "host_deadline_s": 0.4,
            "route_deadline_s": 1.0,
            "spare_process": True,
        },
        run_dir="/dev/shm/mine",
        flight_dir="~/flights",
    )
    resolved = tree.resolve(settings, ("cpu",))
    assert resolved.model.name == "mine"
    assert resolved.model.dtype is Dtype.FLOAT16
    assert resolved.worker.max_batch_tokens == 4096
    assert resolved.recovery == settings.recovery
    assert resolved.run_dir == Path("/dev/shm/mine")
    assert resolved.flight_dir == Path.home() / "flights"


def test_on_the_cpu_an_idle_host_thread_and_a_first_word_have_the_answer_deadline_that_was_given() -> None:
    settings = _settings(recovery={"answer_deadline_s": 3.0})
    assert tree.resolve(settings, ("cpu",)).recovery.route_deadline_s == 3.0
    assert tree.resolve(settings, ("cuda:0",)).recovery.route_deadline_s == 1.0
    assert tree.resolve(settings, ("cpu",)).recovery.host_deadline_s == 3.0
    assert tree.resolve(settings, ("cuda:0",)).recovery.host_deadline_s == 0.4


def test_a_reading_of_the_gpu_must_come_before_a_dead_workers_memory_is_given_up() -> None:
    assert tree.resolve(_settings(watchdog={"gpu_interval_s": 5, "gpu_deadline_s": 10}), ("cuda:0",))
    with pytest.raises(SettingsError) as error:
        tree.resolve(_settings(watchdog={"gpu_interval_s": 30, "gpu_deadline_s": 60}), ("cuda:0",))
    assert str(error.value).startswith(
        "watchdog.gpu_interval_s is 30; at most half of recovery.reclaim_deadline_s, 10, is allowed: "
    )


def test_resolving_again_changes_nothing() -> None:
    resolved = tree.resolve(Settings(), ("cpu",))
    assert tree.resolve(resolved, ("cpu",)) == resolved


@pytest.mark.parametrize(
    ("given_s", "devices", "floor_s", "ceiling_s"),
    [
        ({"stall_ceiling_s": 1.0}, ("cpu",), 1.0, 1.0),
        ({"stall_floor_s": 30.0}, ("cpu",), 30.0, 30.0),
        ({"stall_floor_s": 8.0}, ("cuda:0",), 8.0, 8.0),
        ({"stall_floor_s": 3.0}, ("cpu",), 3.0, 10.0),
        ({"stall_ceiling_s": 0.01}, ("cuda:0",), 0.01, 0.01),
    ],
)
def test_the_other_bound_of_the_stall_time_follows(
    given_s: dict[str, float], devices: tuple[str, ...], floor_s: float, ceiling_s: float
) -> None:
    recovery = tree.resolve(_settings(recovery=given_s), devices).recovery
    assert (recovery.stall_floor_s, recovery.stall_ceiling_s) == (floor_s, ceiling_s)


def test_stall_bounds_that_contradict_each_other() -> None:
    with pytest.raises(SettingsError) as error:
        tree.resolve(_settings(recovery={"stall_floor_s": 2, "stall_ceiling_s": 1}), ("cuda:0",))
    assert str(error.value) == "recovery.stall_floor_s is 2; at most recovery.stall_ceiling_s, 1, is allowed"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        (None, None),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://[::1]:4318/otlp/v1/traces", "http://[::1]:4318/otlp/v1/traces"),
    ],
)
def test_where_traces_go(endpoint: str | None, url: str | None) -> None:
    assert _settings(traces={"endpoint": endpoint}).traces.url == url


@pytest.mark.parametrize(
    "endpoint",
    [
        "127.0.0.1:4318",
        "grpc://collector:4317",
        "http://",
        "http://u:p@collector",
        "http://c/?x=1",
        "http://c:port",
        "http://c:65536",
        "x",
    ],
)
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="allowed: http://HOST:PORT or https://HOST:PORT, with a path or without"):
        _settings(traces={"endpoint": endpoint})


def test_the_queue_takes_half_the_arena() -> None:
    resolved = tree.resolve(_settings(arena={"size_bytes": "64MiB"}), "cpu")
    assert resolved.gateway.max_queue_bytes == 32 * 1024 * 1024
    given = tree.resolve(_settings(arena={"size_bytes": "64MiB"}, gateway={"max_queue_bytes": "64MiB"}), "cpu")
    assert given.gateway.max_queue_bytes == 64 * 1024 * 1024


def test_a_queue_that_is_larger_than_the_arena() -> None:
    with pytest.raises(SettingsError) as error:
        tree.resolve(_settings(arena={"size_bytes": "1MiB"}, gateway={"max_queue_bytes": "2MiB"}), "cpu")
    assert str(error.value) == "gateway.max_queue_bytes is 2097152; at most arena.size_bytes, 1048576, is allowed"


def test_programs_are_as_many_as_the_kernel_takes() -> None:
    assert _settings(worker={"programs": MOST_PROGRAMS}).worker.programs == 65536
    with pytest.raises(ValidationError, match="less than or equal to 65536"):
        _settings(worker={"programs": MOST_PROGRAMS + 1})


def test_bfloat16_on_the_cpu() -> None:
    with pytest.raises(SettingsError, match=r"model.dtype is bfloat16; on the CPU float32 is allowed"):
        tree.resolve(_settings(model={"dtype": "bfloat16"}), ("cpu",))


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "float16"}, "float16"), ({}, "float32")],
)
def test_a_gpu_serves_the_checkpoints_own_dtype(tmp_path: Path, config: dict[str, object], dtype: str) -> None:
    resolved = tree.resolve(_model(tmp_path, config), ("cuda:0",))
    assert resolved.model.dtype == dtype
    assert resolved.model.path == tmp_path


def test_a_checkpoint_of_another_dtype(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as error:
        tree.resolve(_model(tmp_path, {"dtype": "float8_e4m3fn"}), ("cuda:0",))
    assert str(error.value) == (
        f"model.dtype is auto, and {tmp_path}/config.json says 'float8_e4m3fn'; "
        "allowed: float32, bfloat16, float16: give one"
    )


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model.dtype is auto, and the checkpoint does not say its own: .*absent"):
        tree.resolve(_settings(model={"path": tmp_path / "absent"}), ("cuda:0",))


def test_a_name_is_made_of_what_an_address_may_hold(tmp_path: Path) -> None:
    resolved = tree.resolve(_settings(model={"path": tmp_path / "my model (1)"}), ("cpu",))
    assert resolved.model.name == "my-model--1-"


def test_base_directories_of_the_desktop_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert tree.demo_directory() == Path("/var/cache/me/fdmoe/demo-qwen3-moe")
    assert tree.resolve(Settings(), ("cpu",)).flight_dir == Path.home() / ".local/state/fdmoe/flights"


def test_the_run_directory_follows_the_port() -> None:
    assert tree.run_directory(_settings(gateway={"port": 81})) == Path(f"/dev/shm/fdmoe-{os.getuid()}-81")
    assert tree.run_directory(_settings(gateway={"port": 81}, run_dir="/run/x")) == Path("/run/x")


def test_children_read_what_was_written(tmp_path: Path) -> None:
    written = _settings(model={"layers": "0,2"}, chaos=True, arena={"size_bytes": "1MiB"})
    settings = tree.resolve(written, ("cpu:0", "cpu:1"))
    file = tmp_path / "settings.json"
    tree.write(settings, file)
    assert tree.read(file) == settings
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        tree.write(settings, file)


def test_children_refuse_another_programs_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"gateway": {"prot": 1}}')
    with pytest.raises(ValidationError, match=r"gateway.prot"):
        tree.read(file)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("https://example.org/grafana/", "https://example.org/grafana"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
    ],
)
def test_the_address_of_a_grafana(written: str, url: str) -> None:
    assert _settings(grafana={"url": written}).grafana.url == url


@pytest.mark.parametrize(
    "written",
    [
        "",
        "grafana.example.org",
        "grafana:3000",
        "//example.org",
        "ftp://example.org",
        "http://",
        "http://a:b",
        "http://[::1",
    ],
)
def test_no_address_of_a_grafana(written: str) -> None:
    with pytest.raises(ValidationError) as error:
        _settings(grafana={"url": written})
    assert [str(found["ctx"]["error"]) for found in error.value.errors()] == [
        "allowed: http:// or https://, a host, and a path where there is one, as in https://grafana.example.org"
    ]


@pytest.mark.parametrize("written", ["http://admin:admin@example.org", "http://example.org/?verify=no", "http://h/#a"])
def test_an_address_that_says_more(written: str) -> None:
    with pytest.raises(ValidationError, match=r"no user, query or fragment: the token is in grafana\.token_file"):
        _settings(grafana={"url": written})


@pytest.mark.parametrize("written", ["", "a b", "a/b", "x" * 41])
def test_a_folder_uid_that_grafana_would_refuse(written: str) -> None:
    with pytest.raises(ValidationError, match="allowed: 1 to 40 letters, digits, '-' and '_'"):
        _settings(grafana={"folder_uid": written})
