"""The settings file that the chart writes: its text, and that the program takes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fdmoe_ops.settings import Settings

Render = Callable[..., dict[str, dict[str, Any]]]
ROOT = Path(__file__).parents[2]
EVERYTHING = yaml.safe_load((ROOT / "charts/fdmoe-ops/ci/everything-values.yaml").read_text())


def settings_of(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (name,) = objects["ConfigMap"]["data"]
    assert name == "fdmoe.yaml"
    return yaml.safe_load(objects["ConfigMap"]["data"][name])


def test_the_settings_file(render: Render) -> None:
    assert settings_of(render()) == {
        "chaos": False,
        "devices": "all",
        "flight_dir": "/var/lib/fdmoe/flights",
        "gateway": {"host": "0.0.0.0", "port": 8080},
        "log": {"format": "json"},
        "model": {"layers": "all", "dtype": "auto"},
        "recovery": {},
        "run_dir": "/dev/shm/fdmoe",
        "watchdog": {"host": "0.0.0.0", "port": 9400},
    }
    assert settings_of(render(EVERYTHING)) == {
        "arena": {"size_bytes": 536870912},
        "chaos": True,
        "devices": "all",
        "flight_dir": "/var/lib/fdmoe/flights",
        "gateway": {"host": "0.0.0.0", "port": 8080, "max_queue_tokens": 1000000},
        "grafana": {
            "url": "https://grafana.example.org",
            "datasource": "prometheus",
            "token_file": "/etc/fdmoe-grafana/token",
        },
        "log": {"format": "json"},
        "model": {"name": "qwen3", "layers": [0, 2], "dtype": "bfloat16", "path": "/models/Qwen3-30B-A3B"},
        "recovery": {"stall_floor_s": 0.2, "restart_budget": 3},
        "run_dir": "/dev/shm/fdmoe",
        "watchdog": {"host": "0.0.0.0", "port": 9400},
    }


@pytest.mark.parametrize("values", [{}, EVERYTHING, {"gpu": {"count": 0}}])
def test_the_program_takes_the_settings_file(render: Render, values: dict[str, Any]) -> None:
    rendered = settings_of(render(values))
    taken = Settings.model_validate(rendered)
    for key, value in rendered.items():
        given = getattr(taken, key)
        if isinstance(value, dict):
            value = {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}
            given = {name: getattr(given, name) for name in value}
            given = {name: str(item) if isinstance(item, Path) else item for name, item in given.items()}
        given = ",".join(given) if isinstance(given, tuple) else given
        assert (str(given) if isinstance(given, Path) else given) == value, key


def test_a_changed_setting_starts_new_pods(render: Render) -> None:
    checksums = [
        render(values)["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
        for values in ({}, {"service": {"port": 81}}, {"settings": {"chaos": True}})
    ]
    assert checksums[0] == checksums[1]
    assert checksums[0] != checksums[2]


def test_without_a_gpu_the_devices_are_the_cpu(render: Render) -> None:
    assert settings_of(render({"gpu": {"count": 0}}))["devices"] == "cpu"


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ({"existingClaim": "c"}, "/models"),
        ({"existingClaim": "c", "directory": "m"}, "/models/m"),
        ({"hostPath": "/srv", "directory": "/a/b/"}, "/models/a/b"),
    ],
)
def test_the_path_of_a_model(render: Render, model: dict[str, str], path: str) -> None:
    assert settings_of(render({"model": model}))["model"]["path"] == path
