"""The rules: that they come from their generator, promtool's own judgement, their texts, and what they are made of."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from dashboard_queries import DASHBOARDS

from fdmoe_dashboards import alerts as alert_rules
from fdmoe_dashboards import files, objectives
from fdmoe_dashboards.rule import Group, Record, text_of
from fdmoe_ops.gateway.metrics import Metrics as GatewayMetrics
from fdmoe_ops.gateway.refusal import Reason
from fdmoe_watchdog import xid
from fdmoe_watchdog.messages import Path as ServingPath
from fdmoe_watchdog.messages import RecoveryAction
from fdmoe_watchdog.policy import Life
from fdmoe_watchdog.settings import RecoverySettings

RULES = DASHBOARDS / "rules"
HISTORIES = sorted((RULES / "tests").glob("*.yaml"))
ALERTS_FILE, RECORDINGS_FILE = RULES / "alerts.yaml", RULES / "recordings.yaml"

Promtool = Callable[..., subprocess.CompletedProcess[str]]


def rules(file: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def histories() -> Iterator[dict[str, Any]]:
    for file in HISTORIES:
        yield from yaml.safe_load(file.read_text())["tests"]


ALERTS = rules(ALERTS_FILE)
NAMES = sorted({rule["alert"] for rule in ALERTS})


def test_the_generator_writes_these_bytes() -> None:
    generated = files.rule_files()
    assert set(generated) == {"rules/alerts.yaml", "rules/recordings.yaml"}
    for name, text in generated.items():
        assert text == (DASHBOARDS / name).read_text(encoding="utf-8"), f"{name}: run make dashboards"
    page = (DASHBOARDS / "README.md").read_text(encoding="utf-8")
    assert files.readme(page) == page, "README.md: run make dashboards"


def test_a_rule_file_is_yaml_with_its_reasons() -> None:
    group = Group("g", (Record("a:b:sum", "sum (b)\nor 0", "It must be there from the start."), Record("a:c:sum", "c")))
    assert text_of("What it is.", [group]) == (
        "# What it is.\n"
        "groups:\n"
        "  - name: g\n"
        "    rules:\n"
        "      # It must be there from the start.\n"
        "      - record: a:b:sum\n"
        "        expr: |-\n"
        "          sum (b)\n"
        "          or 0\n"
        "\n"
        "      - record: a:c:sum\n"
        "        expr: c\n"
    )


def test_promtool_accepts_the_rules(promtool: Promtool) -> None:
    checked = promtool("check", "rules", ALERTS_FILE, RECORDINGS_FILE)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.findall(r"SUCCESS: (\d+) rules found", checked.stdout) == ["24", "33"]


@pytest.mark.parametrize("file", HISTORIES, ids=lambda file: file.stem)
def test_the_histories_answer_with_exact_labels_and_text(file: Path, promtool: Promtool) -> None:
    tested = promtool("test", "rules", file)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_a_changed_summary_is_noticed(promtool: Promtool, tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/progress.yaml").write_text((RULES / "tests/progress.yaml").read_text())
    (tmp_path / "recordings.yaml").write_text(RECORDINGS_FILE.read_text())
    text = ALERTS_FILE.read_text()
    assert "no heartbeat" in text
    (tmp_path / "alerts.yaml").write_text(text.replace("no heartbeat", "no beat"))
    tested = promtool("test", "rules", tmp_path / "tests/progress.yaml")
    assert tested.returncode == 1
    assert "has outstanding work and no beat" in tested.stdout + tested.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_a_history_in_which_it_is_silent_fires_and_ends(name: str) -> None:
    courses = [
        "".join(
            "!" if check["exp_alerts"] else "." for check in history["alert_rule_test"] if check["alertname"] == name
        )
        for history in histories()
        if "alert_rule_test" in history
    ]
    assert any(re.search(r"\.!+\.", course) for course in courses), courses


def test_every_burn_rate_has_fired_in_a_history() -> None:
    fired = {
        (check["alertname"], alert["exp_labels"]["long"], alert["exp_labels"]["short"], alert["exp_labels"]["severity"])
        for history in histories()
        for check in history.get("alert_rule_test", ())
        for alert in check["exp_alerts"]
        if check["alertname"].endswith("Burn")
    }
    assert fired == {
        (name, burn.long, burn.short, burn.severity)
        for name in ("FdmoeAvailabilityBurn", "FdmoeLatencyBurn")
        for burn in objectives.BURNS
    }


def test_every_recording_is_evaluated_in_a_history() -> None:
    evaluated = {check["expr"] for history in histories() for check in history.get("promql_expr_test", ())}
    recorded = {rule["record"] for rule in rules(RECORDINGS_FILE)}
    assert recorded - evaluated == set()
    assert all(re.fullmatch(r"instance:fdmoe_[a-z_]+:(sum|rate\d+[mhd]|ratio_rate5m)", name) for name in recorded)


def test_the_alerts_are_these() -> None:
    found = [(rule["alert"], rule.get("for", ""), rule["labels"]["severity"]) for rule in ALERTS]
    assert found == [
        *(("FdmoeAvailabilityBurn", "", severity) for severity in ("critical", "critical", "warning", "warning")),
        *(("FdmoeLatencyBurn", "", severity) for severity in ("critical", "critical", "warning", "warning")),
        ("FdmoeNotServing", "2m", "critical"),
        ("FdmoeTargetDown", "2m", "critical"),
        ("FdmoeTargetMissing", "10m", "critical"),
        ("FdmoeNoStandby", "10m", "warning"),
        ("FdmoeOnBaseline", "5m", "warning"),
        ("FdmoeHeartbeatStale", "30s", "critical"),
        ("FdmoeBusyWithoutProgress", "1m", "critical"),
        ("FdmoeWatchdogLagging", "5m", "warning"),
        ("FdmoeRecoveryFailed", "", "critical"),
        ("FdmoeRestartLoop", "", "warning"),
        ("FdmoeShadowMismatch", "", "critical"),
        ("FdmoeXidCritical", "", "critical"),
        ("FdmoeRecoveryActionNeeded", "", "critical"),
        ("FdmoeCollectorStale", "5m", "warning"),
        ("FdmoeQueueSaturated", "5m", "warning"),
        ("FdmoeExpertImbalance", "15m", "warning"),
    ]


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_what_where_and_what_to_do(rule: dict[str, Any]) -> None:
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url"}
    assert "$labels." in annotations["summary"]
    assert annotations["description"].endswith(".")
    assert (DASHBOARDS.parent / annotations["runbook_url"]).is_file()


def test_the_burn_rates_are_the_workbooks() -> None:
    assert [(burn.rate, burn.long, burn.short, burn.severity) for burn in objectives.BURNS] == [
        (14.4, "1h", "5m", "critical"),
        (6, "6h", "30m", "critical"),
        (3, "1d", "2h", "warning"),
        (1, "3d", "6h", "warning"),
    ]
    assert {window for burn in objectives.BURNS for window in (burn.long, burn.short)} == set(objectives.WINDOWS)
    assert [objectives.seconds(window) for window in ("5m", "6h", "3d")] == [300, 21600, 259200]


def test_thresholds_are_bounds_of_their_histograms() -> None:
    metrics = GatewayMetrics(lambda: 0, lambda: 0)
    metrics.answered("m/layers.0", "fused", "200", 0.1, 1, {})
    bounds = {
        sample.labels["le"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "fdmoe_request_duration_seconds_bucket"
    }
    assert str(objectives.LATENCY_THRESHOLD_S) in bounds
    text = (DASHBOARDS.parent / "watchdog/fdmoe_watchdog/metrics.py").read_text()
    (lags,) = re.findall(r"^_LAG_SECONDS = \((.*)\)$", text, re.MULTILINE)
    assert f"{alert_rules.LATE_TURN_S:g}" in lags.split(", ")
    assert RecoverySettings().watchdog_lag_max_s == alert_rules.LATE_TURN_S


def test_label_values_are_the_programs() -> None:
    """Every value that an alert asks a label for exists there."""
    text = " ".join(rule["expr"] for rule in (*ALERTS, *rules(RECORDINGS_FILE)))
    values: dict[str, set[str]] = {}
    for label, pattern in re.findall(r'(\w+)(?:=|!=|=~)"([^"]+)"', text):
        values.setdefault(label, set()).update(pattern.split("|"))
    assert values.pop("state") <= {life.value for life in Life}
    assert values.pop("path") <= set(get_args(ServingPath))
    assert values.pop("reason") == {reason.value for reason in Reason} - {
        "starting", "draining", "head_malformed", "head_size", "head_timeout",
    }  # fmt: skip
    assert values.pop("action") <= set(get_args(RecoveryAction))
    assert values.pop("xid") == {
        str(number)
        for number, entry in xid.XIDS.items()
        if entry.kind in (xid.XidClass.RESET_GPU, xid.XidClass.DRAIN_NODE)
    }
    assert values == {"result": {"mismatch"}, "code": {"200", "5.."}, "le": {"0.25", "0.1"}}
