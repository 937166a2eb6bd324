"""Every metric that a dashboard, a rule or a runbook names is exported, and every exported one is seen there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard_queries import DASHBOARDS

ROOT = DASHBOARDS.parent
METRICS_MODULES = (
    "watchdog/fdmoe_watchdog/metrics.py",
    "watchdog/fdmoe_watchdog/count_metrics.py",
    "watchdog/fdmoe_watchdog/gpu_metrics.py",
    "fdmoe_ops/fdmoe_ops/gateway/metrics.py",
)
# what a name in the exposition has behind the name in the program
SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_info")
NAMING = (*DASHBOARDS.glob("*.json"), *DASHBOARDS.glob("rules/*.yaml"), *DASHBOARDS.glob("runbooks/*.md"))


def _bare(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def exported() -> set[str]:
    """The metrics modules' string literals that are metric names, without suffixes."""
    return {
        _bare(str(node.value))
        for module in METRICS_MODULES
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch(r"fdmoe_[a-z0-9_]+", str(node.value))
    }


def named(file: Path) -> Iterator[str]:
    """The metrics that a file names, without suffixes; what a rule records is none of them."""
    for name in re.findall(r"(?<![\w:/])fdmoe_[a-z0-9_]+\b(?!/|\.\w)", file.read_text()):
        yield _bare(name)


def everything_named() -> list[str]:
    return sorted({name for file in NAMING for name in named(file)})


@pytest.mark.parametrize("name", everything_named())
def test_every_metric_that_is_named_exists(name: str) -> None:
    files = [file.name for file in NAMING if name in named(file)]
    assert name in exported(), f"named in {', '.join(files)}"


@pytest.mark.parametrize("name", sorted(exported()))
def test_every_metric_that_exists_is_seen(name: str) -> None:
    assert name in {found for file in NAMING if file.suffix != ".md" for found in named(file)}
