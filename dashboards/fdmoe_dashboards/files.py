"""Which text belongs to which file of dashboards/."""

from __future__ import annotations

import re
from pathlib import Path

from fdmoe_dashboards import alerts, slo
from fdmoe_dashboards.rule import RUNBOOKS, Alert, Group, text_of

FOLDER = Path(__file__).parents[1]
_MADE = "Made by `make dashboards` from dashboards/fdmoe_dashboards: change that."
_TABLE = re.compile(r"(?<=<!-- alerts -->\n).*?(?=<!-- end of alerts -->)", re.DOTALL)


def all_alerts() -> tuple[Alert, ...]:
    groups = (slo.alerts(), alerts.alerts())
    return tuple(rule for group in groups for rule in group.rules if isinstance(rule, Alert))


def rule_files() -> dict[str, str]:
    """Rule files by their path in dashboards/."""
    recordings: tuple[Group, ...] = (slo.recordings(), alerts.recordings())
    where = f"{RUNBOOKS}/ is their path in the repository; `make dashboards RUNBOOKS=ADDRESS` writes another."
    return {
        "rules/recordings.yaml": text_of(f"What alerts and dashboards count with. {_MADE}", recordings),
        "rules/alerts.yaml": text_of(
            f"Alerts of the service; rules/recordings.yaml must be loaded, too. {_MADE} `runbook_url`: {where}",
            (slo.alerts(), alerts.alerts()),
        ),
    }


def dashboard_files() -> dict[str, str]:
    """The dashboards' JSON by path in dashboards/. Needs grafana-foundation-sdk, which nothing else here does."""
    from fdmoe_dashboards import experts, gpu, kernel, service

    boards = (service.dashboard(), kernel.dashboard(), gpu.dashboard(), experts.dashboard())
    return {f"{board.uid}.json": board.text for board in boards}


def readme(text: str) -> str:
    """The README with its table of alerts as it must be."""
    rows = {
        alert.name: f"| `{alert.name}` | {{}} | [{alert.runbook}](runbooks/{alert.runbook}.md) |\n"
        for alert in all_alerts()
    }
    table = "| alert | severity | runbook |\n|---|---|---|\n"
    for name, row in rows.items():
        severities = dict.fromkeys(alert.severity for alert in all_alerts() if alert.name == name)
        table += row.format(", ".join(severities))
    return _TABLE.sub(lambda _: table, text)
