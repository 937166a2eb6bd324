"""How panels look: one function a kind. Sizes are in cells of Grafana's grid, 24 to a row."""

from __future__ import annotations

from typing import TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    stat,
    statetimeline,
    table,
    text,
    timeseries,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    AxisPlacement,
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
    VizOrientation,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DynamicConfigValue,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.text import TextMode

from fdmoe_dashboards.rule import RUNBOOKS

Panel = bargauge.Panel | heatmap.Panel | stat.Panel | statetimeline.Panel | table.Panel | text.Panel | timeseries.Panel
Data = TypeVar("Data", bargauge.Panel, heatmap.Panel, stat.Panel, statetimeline.Panel, table.Panel, timeseries.Panel)
States = dict[str, tuple[str, str]]  # a value's name and colour
OFF_ON: States = {"0": ("no", "green"), "1": ("yes", "red")}
ON_OFF: States = {"0": ("no", "red"), "1": ("yes", "green")}


def runbooks(panel: Data, *pages: str) -> Data:
    """Links to the pages of the alerts that watch what the panel shows."""
    return panel.links(
        [
            dashboard.DashboardLink(f"Runbook: {page}")
            .type(DashboardLinkType.LINK)
            .url(f"{RUNBOOKS}/{page}.md")
            .target_blank(True)
            for page in pages
        ]
    )


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Dataquery,
    width: int = 8,
    height: int = 7,
    logarithmic: bool = False,
) -> timeseries.Panel:
    panel = _with(timeseries.Panel(), title, description, queries, width, height)
    panel.unit(unit).fill_opacity(10).show_points(VisibilityMode.NEVER)
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    else:
        panel.min(0)
    return panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    ).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))


def events(title: str, description: str, target: Dataquery, width: int = 8, height: int = 7) -> timeseries.Panel:
    """Stacked bars of how often something happened; a counter's rate would read 0.03 per second for one stall."""
    return (
        lines(title, description, "none", target, width=width, height=height)
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(80)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    )


def right_axis(panel: timeseries.Panel, query: str, unit: str) -> timeseries.Panel:
    return panel.override_by_query(
        query,
        [
            DynamicConfigValue(id_val="custom.axisPlacement", value=AxisPlacement.RIGHT),
            DynamicConfigValue(id_val="unit", value=unit),
        ],
    )


def limits(panel: timeseries.Panel, *values: float) -> timeseries.Panel:
    """Lines at values from which on an alert is near."""
    colours = ("yellow", "orange", "red")[-len(values) :]
    return panel.thresholds(_steps(("green", None), *zip(colours, values, strict=True))).thresholds_style(
        common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
    )


def number(
    title: str, description: str, unit: str, target: Dataquery, *red_below: float, width: int = 6, height: int = 6
) -> stat.Panel:
    panel = _with(stat.Panel(), title, description, (target,), width, height)
    panel.unit(unit).graph_mode(BigValueGraphMode.NONE).no_value("no data")
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if red_below:
        panel.thresholds(_steps(("red", None), *(("green", value) for value in red_below)))
        panel.color_mode(BigValueColorMode.BACKGROUND)
    else:
        panel.color_scheme(dashboard.FieldColor().mode(FieldColorModeId.FIXED).fixed_color("text"))
    return panel


def name(title: str, description: str, target: Dataquery, width: int = 6, height: int = 6) -> stat.Panel:
    """The legend is the message."""
    return number(title, description, "none", target, width=width, height=height).text_mode(BigValueTextMode.NAME)


def state(
    title: str, description: str, target: Dataquery, states: States, width: int = 6, height: int = 6
) -> stat.Panel:
    panel = number(title, description, "none", target, width=width, height=height)
    return panel.mappings([_names(states)]).color_mode(BigValueColorMode.BACKGROUND)


def timeline(
    title: str, description: str, target: Dataquery, states: States, width: int = 12, height: int = 7
) -> statetimeline.Panel:
    panel = _with(statetimeline.Panel(), title, description, (target,), width, height)
    show = VisibilityMode.AUTO if len(states) > 1 else VisibilityMode.NEVER
    return panel.mappings([_names(states)]).merge_values(True).show_value(show)


def heat_map(
    title: str, description: str, unit: str, target: Dataquery, width: int = 12, height: int = 7
) -> heatmap.Panel:
    """Of a histogram's buckets, or of series that are rows."""
    return (
        _with(heatmap.Panel(), title, description, (target,), width, height)
        .calculate(False)
        .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.AUTO))
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .cell_values(heatmap.CellValues().unit("short"))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .steps(64)
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .fill("dark-orange")
        )
        .show_legend()
    )


def bars(
    title: str, description: str, unit: str, target: Dataquery, width: int = 12, height: int = 9
) -> bargauge.Panel:
    panel = _with(bargauge.Panel(), title, description, (target,), width, height)
    return panel.unit(unit).min(0).orientation(VizOrientation.HORIZONTAL)


def rows(title: str, description: str, target: Dataquery, width: int = 12, height: int = 6) -> table.Panel:
    return _with(table.Panel(), title, description, (target,), width, height)


def words(title: str, content: str, width: int, height: int) -> text.Panel:
    return text.Panel().title(title).mode(TextMode.MARKDOWN).content(content).span(width).height(height)


def _with(panel: Data, title: str, description: str, queries: tuple[Dataquery, ...], width: int, height: int) -> Data:
    for letter, target in zip("ABCDEFGH", queries, strict=False):
        panel.with_target(target.ref_id(letter))
    return panel.title(title).description(description).span(width).height(height)


def _names(states: States) -> ValueMap:
    return ValueMap(
        {
            value: ValueMappingResult(text=shown, color=colour, index=place)
            for place, (value, (shown, colour)) in enumerate(states.items())
        }
    )


def _steps(*steps: tuple[str, float | None]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=colour) for colour, value in steps])
    )
