"""What the chart's values may be: bad ones are refused with a line that names them, before anything is installed."""

from __future__ import annotations

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fdmoe_ops.settings import Settings

Template = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]


def test_the_schema_comes_from_the_settings_tree(chart: Path) -> None:
    generated = runpy.run_path(str(ROOT / "charts/generate_schema.py"))["values_schema"]()
    assert generated.encode() == (chart / "values.schema.json").read_bytes(), "run: python charts/generate_schema.py"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"replicas": 2}, "(root): Additional property replicas is not allowed"),
        ({"replicaCount": "two"}, "replicaCount: Invalid type. Expected: integer, given: string"),
        ({"replicaCount": -1}, "replicaCount: Must be greater than or equal to 0"),
        ({"image": {"repository": ""}}, "image.repository: String length must be greater than or equal to 1"),
        ({"image": {"pullPolicy": "Sometimes"}}, 'image.pullPolicy must be one of the following: "Always"'),
        ({"gpu": {"count": -1}}, "gpu.count: Must be greater than or equal to 0"),
        ({"service": {"port": 70000}}, "service.port: Must be less than or equal to 65535"),
        ({"service": {"port": "http"}}, "service.port: Invalid type. Expected: integer, given: string"),
        ({"model": {"path": "/m"}}, "model: Additional property path is not allowed"),
        ({"sharedMemory": {"sizeLimit": "1 GiB"}}, "sharedMemory.sizeLimit: Does not match pattern"),
        ({"nodeSelector": ["gpu"]}, "nodeSelector: Invalid type. Expected: object, given: array"),
        ({"tolerations": {"key": "gpu"}}, "tolerations: Invalid type. Expected: array, given: object"),
        ({"settings": {"recovry": {}}}, "settings: Additional property recovry is not allowed"),
        ({"settings": {"recovery": {"stall_floor": 1}}}, "Additional property stall_floor is not allowed"),
        ({"settings": {"recovery": {"stall_floor_s": "1s"}}}, "Invalid type. Expected: number, given: string"),
        ({"settings": {"recovery": {"stall_floor_s": 0}}}, "settings.recovery.stall_floor_s: Must be greater than 0"),
        ({"settings": {"model": {"dtype": "int8"}}}, "settings.model.dtype must be one of the following"),
        ({"settings": {"chaos": "yes"}}, "settings.chaos: Invalid type. Expected: boolean, given: string"),
        ({"settings": {"devices": "cpu"}}, "settings: Additional property devices is not allowed"),
        ({"settings": {"run_dir": "/run"}}, "settings: Additional property run_dir is not allowed"),
        ({"settings": {"gateway": {"port": 80}}}, "settings.gateway: Additional property port is not allowed"),
        ({"settings": {"watchdog": {"host": "::1"}}}, "settings.watchdog: Additional property host is not allowed"),
        ({"settings": {"model": {"path": "/m"}}}, "settings.model: Additional property path is not allowed"),
        (
            {"settings": {"grafana": {"token_file": "/t"}}},
            "settings.grafana: Additional property token_file is not allowed",
        ),
        ({"grafana": {"token": "glsa_0"}}, "grafana: Additional property token is not allowed"),
        ({"grafana": {"tokenKey": ""}}, "grafana.tokenKey: String length must be greater than or equal to 1"),
        (
            {"settings": {"grafana": {"url": "https://grafana.example.org"}}},
            "settings.grafana.url is set and grafana.tokenSecret is not; name the Secret with the token",
        ),
        (
            {"grafana": {"tokenSecret": "s"}},
            "grafana.tokenSecret is set and settings.grafana.url is not; give the address of the Grafana",
        ),
        ({"settings": None}, "(root): settings is required"),
        (
            {"model": {"existingClaim": "c", "hostPath": "/m"}},
            "model.existingClaim and model.hostPath are both set; the model is in one volume",
        ),
    ],
    ids=str,
)
def test_bad_values_are_refused(template: Template, values: dict[str, Any], message: str) -> None:
    rendered = template(values)
    assert rendered.returncode != 0
    assert message in rendered.stderr
    assert rendered.stdout == ""


def test_every_other_option_of_the_program_can_be_given(template: Template) -> None:
    tree = Settings().model_dump(mode="json")
    for key in ("devices", "run_dir", "flight_dir"):
        del tree[key]
    del tree["model"]["path"]
    for group in ("gateway", "watchdog"):
        del tree[group]["host"], tree[group]["port"]
    del tree["grafana"]["token_file"]
    tree["model"]["name"] = "qwen3"
    rendered = template({"settings": tree})
    assert rendered.returncode == 0, rendered.stderr
