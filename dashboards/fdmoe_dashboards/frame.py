"""What all dashboards have: variables, links to each other, annotations, rows of panels."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from fdmoe_dashboards.panels import Panel
from fdmoe_dashboards.queries import SOURCE, increase

_PLACE = 'cluster=~"$cluster"', 'namespace=~"$namespace"', 'pod=~"$pod"'


@dataclass(frozen=True)
class Board:
    """`text` is the JSON: the same bytes for the same program."""

    uid: str
    text: str


def board(
    uid: str, title: str, description: str, rows: Iterable[tuple[str, list[Panel]]], layers: bool = False
) -> Board:
    """`rows`: their titles and panels. `layers`: with a variable for the layer."""
    made = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["fdmoe"])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("fdmoe")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["fdmoe"])
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(_PathSwitches())
        .annotation(_failovers())
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_variable("cluster", "fdmoe_build_info"))
        .with_variable(_variable("namespace", "fdmoe_build_info", *_PLACE[:1]))
        .with_variable(_variable("pod", "fdmoe_build_info", *_PLACE[:2]))
        .with_variable(_variable("device", "fdmoe_path_active", *_PLACE))
    )
    if layers:
        made.with_variable(_variable("layer", "fdmoe_request_tokens_total", *_PLACE))
    number = 0
    for heading, panels in rows:
        number += 1
        made.with_row(dashboard.Row(heading).id(number))
        for panel in panels:
            number += 1
            made.with_panel(panel.id(number).datasource(SOURCE))
    return Board(uid, json.dumps(made.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n")


def _variable(name: str, family: str, *matchers: str) -> dashboard.QueryVariable:
    chosen = f"{family}{{{', '.join(matchers)}}}" if matchers else family
    return (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query(f"label_values({chosen}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _failovers() -> dashboard.AnnotationQuery:
    """What `fdmoe serve` has written into this Grafana, where it is told to."""
    tagged = dashboard.AnnotationTarget().type("tags").tags(["fdmoe"]).match_any(False).limit(100)
    own = DataSourceRef(type_val="grafana", uid="-- Grafana --")
    return dashboard.AnnotationQuery().name("Failovers").datasource(own).icon_color("orange").target(tagged)


class _PathSwitches(Builder[AnnotationQuery]):
    """The SDK's own builder knows the annotations of Grafana's database only."""

    def build(self) -> AnnotationQuery:
        return _PrometheusAnnotation("Path switches", SOURCE, icon_color="purple")


class _PrometheusAnnotation(AnnotationQuery):
    def to_json(self) -> dict[str, object]:
        switches = f"sum by (instance, from, to, reason) ({increase('fdmoe_path_switches_total')}) > 0"
        return {
            **super().to_json(),
            "target": {"datasource": self.datasource, "expr": switches, "range": True, "refId": "Anno"},
            "titleFormat": "{{from}} to {{to}}",
            "textFormat": "{{reason}}, {{instance}}",
        }
