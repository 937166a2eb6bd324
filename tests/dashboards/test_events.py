"""dashboards/events.md has every event that the code logs, with its level and fields, and none that it does not."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fdmoe_ops.gateway.metrics import Metrics as GatewayMetrics
from fdmoe_watchdog.gpu_view import GpuView
from fdmoe_watchdog.ledger import Ledger
from fdmoe_watchdog.messages import GpuFigures
from fdmoe_watchdog.metrics import Metrics as WatchdogMetrics
from fdmoe_watchdog.status import GatewayView, TreeView

ROOT = Path(__file__).parents[2]
FOLDERS = ("watchdog/fdmoe_watchdog", "fdmoe_ops/fdmoe_ops")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}
LOGGERS = {"log", "logger", "_log", "_events", "get_logger"}
# of the standard library: a sentence for people, which a line in JSON has as its event
SENTENCES = {"a GPU driver is installed, but torch sees no CUDA device: the CPU is used"}
NOT_FIELDS = {"level", "exc_info"}
ANY = "any"


GPU = GpuView("cuda:0", True, "", "recorded", True, {"79": 1}, 1.0, (GpuFigures(uuid="GPU-1", name="H200"),))


@dataclass
class Logged:
    """What the calls that log one event give it; the level ANY is one that is only known when it happens."""

    levels: set[str] = field(default_factory=set)
    fields: set[str] = field(default_factory=set)


def texts(node: ast.expr) -> list[str]:
    """The strings that an expression can be."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body) + texts(orelse)
        case _:
            return []


def receiver(node: ast.expr) -> str:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Call(func=function):
            return receiver(function)
        case _:
            return ""


def given(keyword: ast.keyword) -> list[str]:
    """The names of the fields: of `**{"from": x}`, those of the dictionary."""
    if keyword.arg is not None:
        return [keyword.arg]
    assert isinstance(keyword.value, ast.Dict), f"fields that only show at run time: {ast.unparse(keyword.value)}"
    return [text for key in keyword.value.keys if key is not None for text in texts(key)]


def calls() -> Iterator[ast.Call]:
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    yield node


def logged() -> dict[str, Logged]:
    found: dict[str, Logged] = defaultdict(Logged)
    for node in calls():
        assert isinstance(node.func, ast.Attribute)
        method = node.func.attr
        if method not in LEVELS | {"add"} or receiver(node.func.value) not in LOGGERS:
            continue
        for event in texts(node.args[0]):
            if event in SENTENCES:
                continue
            keywords = {name: keyword.value for keyword in node.keywords for name in given(keyword)}
            level = keywords.get("level", ast.Constant("info"))
            found[event].levels |= (
                set(texts(level) or [ANY]) if method == "add" else {method.replace("exception", "error")}
            )
            found[event].fields |= keywords.keys() - NOT_FIELDS
    return dict(found)


def rows() -> list[dict[str, str]]:
    """The table's rows; the pages has one for each process."""
    found = []
    for line in (ROOT / "dashboards/events.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found.append(dict(zip(("event", "level", "fields", "when", "metric"), cells, strict=True)))
    return found


def words(cell: str) -> set[str]:
    return set(re.findall(r"`([^`]+)`", cell))


def table() -> dict[str, Logged]:
    found: dict[str, Logged] = defaultdict(Logged)
    for row in rows():
        (event,) = words(row["event"])
        found[event].levels |= set(row["level"].split(", "))
        found[event].fields |= words(row["fields"])
    return dict(found)


def test_the_table_has_every_event_and_no_other() -> None:
    code = logged()
    assert len(code) > 60, "the search finds the calls"
    assert sorted(table()) == sorted(code)


def test_the_table_has_every_field_and_no_other() -> None:
    code, told = logged(), table()
    assert {event: sorted(entry.fields) for event, entry in told.items()} == {
        event: sorted(code[event].fields) for event in told
    }


def test_the_table_has_every_level() -> None:
    code, told = logged(), table()
    fixed = {event: entry.levels for event, entry in code.items() if ANY not in entry.levels}
    assert {event: told[event].levels for event in fixed} == fixed
    for event in code.keys() - fixed.keys():
        assert code[event].levels - {ANY} <= told[event].levels <= {"info", "warning", "error"}


def test_the_metrics_that_move_with_an_event_exist() -> None:
    view = TreeView(
        version="1", path="down", chaos=False, draining=False, uptime_s=0.0, devices=(), workers=(),
        gateway=GatewayView("", 0), gpus=(GPU,), events=(), last_flight=None,
    )  # fmt: skip
    watchdog = WatchdogMetrics(lambda: view, Ledger(print), "1", ("cpu",))
    registries = watchdog.registry, GatewayMetrics(lambda: 0, lambda: 0).registry
    labels: dict[str, set[str]] = defaultdict(set)
    for registry in registries:
        for family in registry.collect():
            suffix = "_total" if family.type == "counter" else ""
            labels[family.name + suffix] |= {name for sample in family.samples for name in sample.labels}
    for row in rows():
        for metric in words(row["metric"]):
            match = re.fullmatch(r"(fdmoe_[a-z_]+)(?:\{([a-z,_]+)(?:=\"[a-z0-9_]+\")?\})?", metric)
            assert match is not None, metric
            assert match[1] in labels, metric
            if match[2] is not None and labels[match[1]]:
                assert set(match[2].split(",")) <= labels[match[1]], metric
