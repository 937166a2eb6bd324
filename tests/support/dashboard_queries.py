"""What the panels of the checked-in dashboards ask Prometheus, with Grafana's variables replaced."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parents[2] / "dashboards"
VARIABLES = ("cluster", "namespace", "pod", "device", "layer")
ALL = ".*"


@dataclass(frozen=True)
class PanelQuery:
    """`query` is the target's letter."""

    dashboard: str
    panel: str
    query: str
    expression: str


def load(uid: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DASHBOARDS / f"{uid}.json").read_text(encoding="utf-8"))
    return found


def uids() -> tuple[str, ...]:
    return tuple(sorted(file.stem for file in DASHBOARDS.glob("*.json")))


def panels(uid: str) -> list[dict[str, Any]]:
    """Those that show data: no rows, no text."""
    return [panel for panel in load(uid)["panels"] if panel["type"] not in ("row", "text")]


def panel_queries(rate_interval: str = "1m", **chosen: str) -> Iterator[PanelQuery]:
    """Every query of every panel. `chosen` are regular expressions for variables, such as device="cuda:0"; the others
    have the value of All. `rate_interval` takes the place of Grafana's $__rate_interval."""
    for uid in uids():
        for panel in panels(uid):
            for target in panel["targets"]:
                expression = replaced(target["expr"], rate_interval, **chosen)
                yield PanelQuery(uid, panel["title"], target["refId"], expression)


def replaced(expression: str, rate_interval: str = "1m", **chosen: str) -> str:
    """One expression as Grafana would send it. Raises KeyError for a variable that is none of the dashboards'."""
    values = dict.fromkeys(VARIABLES, ALL) | chosen | {"__rate_interval": rate_interval}
    return re.sub(r"\$([a-z_]\w*)", lambda found: values[found[1]], expression)
