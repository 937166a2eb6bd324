"""The runbooks: a page an alert, built alike, with the programs' own defaults, and commands that run in a real tree."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from dashboard_queries import DASHBOARDS

from fdmoe_dashboards import objectives
from fdmoe_dashboards.alerts import IMBALANCE
from fdmoe_dashboards.files import all_alerts
from fdmoe_dashboards.queries import series
from fdmoe_ops.chaos.tree import Tree, running_tree
from fdmoe_ops.demo import write_demo_model
from fdmoe_ops.settings import Settings
from fdmoe_watchdog.messages import GpuFigures
from fdmoe_watchdog.probe.recorded import H200

PAGES = sorted((DASHBOARDS / "runbooks").glob("*.md"))
HEADINGS = ["What it means", "What to look at", "What to do", "When to escalate"]
# on a node or with a cluster only
ON_THE_NODE = {"cat", "dmesg", "journalctl", "kubectl", "ls", "ps", "timeout"}

Promtool = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Block:
    page: str
    kind: str
    lines: tuple[str, ...]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for kind, text in re.findall(r"^```([^\n`]+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            yield Block(page.name, kind, tuple(text.splitlines()))


def lines_of(kind: str) -> list[str]:
    return sorted({line for block in blocks() if block.kind == kind for line in block.lines})


def test_each_alert_has_a_page_of_its_own_and_no_page_is_an_orphan() -> None:
    assert {page.stem: page.read_text().partition("\n")[0] for page in PAGES} == {
        alert.runbook: f"# {alert.name}" for alert in all_alerts()
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_are_built_alike(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    severities = {alert.severity for alert in all_alerts() if alert.runbook == page.stem}
    condition = text.split("\n\n")[1]
    assert {word for word in ("critical", "warning") if word in condition.lower()} == severities
    kinds = [block.kind for block in blocks() if block.page == page.name]
    assert set(kinds) <= {"sh", "sh on the node", "promql"}
    assert "sh" in kinds
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_and_defaults_are_the_programs(page: Path) -> None:
    found = re.findall(r"`(recovery|watchdog|arena)\.(\w+)`(?: \(([\d.]+))?", page.read_text())
    for group, name, default in found:
        model = Settings.model_fields[group].annotation
        known = model.model_fields
        assert name in known, f"{page.name} names {group}.{name}; there are {sorted(known)}"
        if default:
            assert float(default) == known[name].default, f"{page.name}: {group}.{name}"


def test_the_objectives_of_the_pages_are_those_of_the_rules() -> None:
    texts = {page.stem: page.read_text() for page in PAGES}
    fast, slower, slow, slowest = (f"{burn.rate:g}" for burn in objectives.BURNS)
    assert slowest == "1"
    for objective in (objectives.AVAILABILITY, objectives.LATENCY):
        text = texts[f"{objective.name}-burn"].replace("\n", " ")
        assert f"({objective.share * 100:g} % are to" in text
        assert f"Critical: {fast} times as fast as allowed over 1 h, or {slower} times over 6 h." in text
        assert f"Warning: {slow} times over a day, or once over 3 days." in text
        assert re.search(rf"Fewer than {objectives.LEAST_EVENTS} (failures|late ones) in the long window", text)
    assert f"longer than {objectives.LATENCY_THRESHOLD_S} s than" in texts["latency-burn"]
    assert f"`fdmoe_expert_imbalance_ratio` above {IMBALANCE} for" in texts["expert-imbalance"]
    readme = (DASHBOARDS / "README.md").read_text()
    assert f"{objectives.AVAILABILITY.share * 100:g} % of requests answered" in readme
    assert f"{objectives.LATENCY.share * 100:g} % of answers within {objectives.LATENCY_THRESHOLD_S} s" in readme


def test_every_query_of_a_page_is_promql(promtool: Promtool, tmp_path: Path) -> None:
    queries = lines_of("promql")
    assert len(queries) > 20
    rules = [{"record": f"page:{number}:query", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "pages", "rules": rules}]}))
    checked = promtool("check", "rules", file)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_what_is_for_the_node_is_known() -> None:
    """These commands run nowhere in the tests: a new one is looked at by whoever adds it here."""
    assert {line.split()[0] for line in lines_of("sh on the node")} == ON_THE_NODE
    for line in lines_of("sh on the node"):
        assert subprocess.run(("bash", "-n", "-c", line), check=False).returncode == 0, line


# ---- a real tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """With a flight record, and a GPU whose every figure is read, from a recording."""
    folder = tmp_path_factory.mktemp("tree")
    model, recording = folder / "demo", folder / "every-figure.json"
    write_demo_model(model)
    recording.write_bytes(_every_figure())
    flags = (f"--model-path={model}", "--model-layers=1", "--enable-chaos", f"--watchdog-gpu-recording={recording}")
    with running_tree(*flags) as tree:
        tree.arm("kill-standby")
        tree.wait_until("a flight record", lambda: tree.status()["last_flight"])
        tree.wait_until_ready()
        tree.wait_until("the GPU", lambda: tree.status()["gpus"][0]["collecting"])
        yield tree


def _every_figure() -> bytes:
    recording: dict[str, Any] = msgspec.json.decode(H200.read_bytes())
    step = next(step for step in recording["steps"] if step["state"] == "working") | {"after_s": 0.0}
    kinds = {float | None: 1.0, int | None: 1, bool | None: False}
    types = msgspec.structs.fields(GpuFigures)
    filled = {field.name: kinds[field.type] for field in types if field.type in kinds}
    step["figures"] = filled | step["figures"]
    return msgspec.json.encode(recording | {"steps": [step]})


def test_the_commands_of_the_pages_run(tree: Tree, tmp_path: Path) -> None:
    commands = lines_of("sh")
    assert {shlex.split(line)[0] for line in commands} == {"fdmoe", "curl"}
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (Debian and Ubuntu: apt-get install curl)")
    # the fdmoe of this Python, whatever is installed beside it
    fdmoe = tmp_path / "fdmoe"
    fdmoe.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -P -m fdmoe_ops.cli "$@"\n')
    fdmoe.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "FDMOE_RUN_DIR": str(tree.run_dir),
        "FDMOE_FLIGHT_DIR": str(tree.flight_dir),
    }
    for command in commands:
        here = command.replace("127.0.0.1:8080", tree.gateway_address)
        here = here.replace("127.0.0.1:9400", f"127.0.0.1:{tree.watchdog_port}")
        done = subprocess.run(
            ("bash", "-o", "pipefail", "-c", here), capture_output=True, text=True, timeout=60, env=environment
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout.strip(), command


@pytest.mark.parametrize("watchdog", [True, False], ids=["watchdog", "gateway"])
def test_promtool_has_nothing_to_say_of_a_scrape(tree: Tree, watchdog: bool, promtool: Promtool) -> None:
    status, body = tree.get("/metrics", watchdog=watchdog)
    assert status == 200
    checked = promtool("check", "metrics", stdin=body)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_the_device_variable_is_asked_for_where_there_is_a_device(tree: Tree) -> None:
    body = tree.get("/metrics", watchdog=True)[1].decode()
    samples = re.findall(r"^(fdmoe_\w+)\{([^}]*)\}", body, re.MULTILINE)
    with_device = {name for name, labels in samples if re.search(r'(^|,)device="', labels)}
    asked = {name for name, _ in samples if "$device" in series(name)}
    assert asked == with_device


def test_counters_that_alerts_watch_stand_at_zero_from_the_start(tree: Tree) -> None:
    """`increase` does not see the first event of a series that is born with it."""
    watched = {name for alert in all_alerts() for name in re.findall(r"increase\((fdmoe_\w+_total)", alert.expression)}
    assert watched == {"fdmoe_recovery_failures_total", "fdmoe_shadow_checks_total"}
    body = tree.get("/metrics", watchdog=True)[1].decode()
    assert {name for name in watched if re.search(rf"^{name}\{{[^}}]*\}} 0\.0$", body, re.MULTILINE)} == watched
