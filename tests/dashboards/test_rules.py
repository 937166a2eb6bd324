"""The alert rules: promtool's own judgement, their texts, their metrics and their runbooks."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import pytest
import yaml

from fdmoe_watchdog.messages import Path as ServingPath
from fdmoe_watchdog.policy import Life
from fdmoe_watchdog.settings import RecoverySettings

ROOT = Path(__file__).parents[2]
METRICS_MODULES = (
    "watchdog/fdmoe_watchdog/metrics.py",
    "watchdog/fdmoe_watchdog/gpu_metrics.py",
    "fdmoe_ops/fdmoe_ops/gateway/metrics.py",
)
RULES = ROOT / "dashboards/rules/alerts.yaml"
RUNBOOKS = sorted((ROOT / "dashboards/runbooks").glob("*.md"))
HISTOGRAM_SUFFIXES = ("_bucket", "_count", "_sum")

Promtool = Callable[..., subprocess.CompletedProcess[str]]


def alerts() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def published_names() -> set[str]:
    """The metrics modules' string literals that are metric names; a counter may be written without `_total`."""
    names = set()
    for module in METRICS_MODULES:
        for node in ast.walk(ast.parse((ROOT / module).read_text())):
            if isinstance(node, ast.Constant) and re.fullmatch(r"fdmoe_[a-z0-9_]+", str(node.value)):
                names.add(str(node.value))
    return names


def named_metrics(text: str) -> Iterator[str]:
    """The families that a text names; the series of a histogram count as their family."""
    for name in re.findall(r"\bfdmoe_[a-z0-9_]+\b", text):
        for suffix in HISTOGRAM_SUFFIXES:
            name = name.removesuffix(suffix)
        yield name


def test_promtool_accepts_the_rules(dashboards: Path, promtool: Promtool) -> None:
    checked = promtool("check", "rules", dashboards / "rules/alerts.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "SUCCESS: 2 rules found" in checked.stdout


def test_the_histories_fire_with_exact_labels_and_text(dashboards: Path, promtool: Promtool) -> None:
    tested = promtool("test", "rules", dashboards / "rules/tests.yaml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_a_changed_summary_is_noticed(dashboards: Path, promtool: Promtool, tmp_path: Path) -> None:
    (tmp_path / "tests.yaml").write_text((dashboards / "rules/tests.yaml").read_text())
    rules = (dashboards / "rules/alerts.yaml").read_text()
    assert "no heartbeat" in rules
    (tmp_path / "alerts.yaml").write_text(rules.replace("no heartbeat", "no beat"))
    tested = promtool("test", "rules", tmp_path / "tests.yaml")
    assert tested.returncode == 1
    assert "has outstanding work and no beat" in tested.stdout + tested.stderr


def test_the_alerts_are_these() -> None:
    assert {rule["alert"]: (rule["for"], rule["labels"]) for rule in alerts()} == {
        "FdmoeHeartbeatStale": ("30s", {"severity": "critical"}),
        "FdmoeOnBaseline": ("5m", {"severity": "warning"}),
    }


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_every_alert_says_what_where_and_what_to_do(rule: dict) -> None:
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "$labels.instance" in annotations["summary"]
    runbook = ROOT / annotations["runbook_url"]
    title, *headings = re.findall(r"^#+ (.*)$", runbook.read_text(), flags=re.MULTILINE)
    assert title == rule["alert"]
    assert headings == ["What it means", "What to look at", "What to do", "When to escalate"]


def test_no_runbook_is_an_orphan() -> None:
    assert [str(page.relative_to(ROOT)) for page in RUNBOOKS] == sorted(
        rule["annotations"]["runbook_url"] for rule in alerts()
    )


def test_states_and_paths_are_the_watchdogs() -> None:
    expressions = " ".join(rule["expr"] for rule in alerts())
    values: dict[str, set[str]] = {"state": set(), "path": set()}
    for label, pattern in re.findall(r'(state|path)=~?"([^"]+)"', expressions):
        values[label] |= set(pattern.split("|"))
    assert values["state"] == {"starting"} <= {life.value for life in Life}
    assert values["path"] == {"baseline", "shadow"} <= set(get_args(ServingPath))


@pytest.mark.parametrize("page", RUNBOOKS, ids=lambda page: page.name)
def test_the_runbooks_settings_and_defaults_are_the_programs(page: Path) -> None:
    fields = RecoverySettings.model_fields
    found = re.findall(r"`recovery\.(\w+)`(?: \((?P<default>[\d.]+))?", page.read_text())
    assert found
    for name, default in found:
        assert name in fields, f"{page.name} names recovery.{name}; the settings have {sorted(fields)}"
        if default:
            assert float(default) == fields[name].default, f"{page.name}: recovery.{name}"


@pytest.mark.parametrize("file", [RULES, *RUNBOOKS, ROOT / "dashboards/fdmoe-service.json"], ids=lambda path: path.name)
def test_every_metric_that_is_named_exists(file: Path) -> None:
    published = published_names()
    for name in named_metrics(file.read_text()):
        assert name in published or name.removesuffix("_total") in published, (
            f"{file.name} names {name}; {' and '.join(METRICS_MODULES)} publish {sorted(published)}"
        )
