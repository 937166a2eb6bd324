"""Writes the Grafana dashboard as JSON beside this file: `python dashboards/generate.py`.

Needs `grafana-foundation-sdk==1769699379!11.6.0` (the schema of Grafana 11.6), which only this program uses: Grafana
reads the JSON, and the JSON is checked in. `$device` filters the panels whose metric has that label; the other metrics
know workers, layers and paths.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphDrawStyle,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

OUTPUT = Path(__file__).with_name("fdmoe-service.json")
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
Panel = stat.Panel | statetimeline.Panel | timeseries.Panel

# One number per device, so that the timeline has one row per device and a colour per path. The watchdog sets exactly
# one of a device's paths to 1, and none while no worker serves: the sum is that path's number, or 0.
PATHS = {"fused": (1, "green"), "shadow": (2, "yellow"), "baseline": (3, "orange")}
PATH_NUMBER = "sum by (instance, device) ({})".format(
    " or ".join(
        f'{number} * fdmoe_path_active{{device=~"$device", path="{path}"}}' for path, (number, _) in PATHS.items()
    )
)
PATH_NAMES = ValueMap(
    {"0": ValueMappingResult(text="not serving", color="red", index=0)}
    | {str(number): ValueMappingResult(text=path, color=color, index=number) for path, (number, color) in PATHS.items()}
)
STALE_HEARTBEAT_S = 1  # the threshold of the alert FdmoeHeartbeatStale


def query(expression: str, legend: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression).legend_format(legend).datasource(SOURCE).range()


def rate_of(counter: str, label: str) -> prometheus.Dataquery:
    return query(f"sum by ({label}) (rate({counter}[$__rate_interval]))", f"{{{{{label}}}}}")


def increase_of(counter: str, *labels: str, legend: str) -> prometheus.Dataquery:
    """How much a counter rose. A series with labels is born with its first event, at 1: `increase` sees no rise there,
    so a series that is younger than the interval counts with all it has."""
    total = f"({counter} unless {counter} offset $__rate_interval) or increase({counter}[$__rate_interval])"
    return query(f"sum by ({', '.join(labels)}) ({total})" if labels else f"sum ({total})", legend)


def latency(quantile: float) -> prometheus.Dataquery:
    buckets = "sum by (le, path) (rate(fdmoe_request_duration_seconds_bucket[$__rate_interval]))"
    return query(f"histogram_quantile({quantile}, {buckets})", f"{{{{path}}}} p{quantile * 100:.0f}")


def lines(unit: str, *queries: prometheus.Dataquery) -> timeseries.Panel:
    panel = timeseries.Panel().unit(unit).min(0).fill_opacity(10).show_points(VisibilityMode.NEVER)
    for index, target in enumerate(queries):
        panel.with_target(target.ref_id("AB"[index]))
    return panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    ).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))


def events(target: prometheus.Dataquery) -> timeseries.Panel:
    """Stacked bars of how often something happened; a counter's rate would read 0.03 per second for one stall."""
    return (
        lines("none", target)
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(80)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    )


def serving_panels() -> list[Panel]:
    return [
        stat.Panel()
        .title("Path now")
        .description("The path that answers. In shadow the baseline answers and the fused path is compared with it.")
        # instant: a range's last value would show the path of a watchdog that is no longer there
        .with_target(query(PATH_NUMBER, "{{instance}} {{device}}").instant().ref_id("A"))
        .mappings([PATH_NAMES])
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .color_mode(BigValueColorMode.BACKGROUND)
        .graph_mode(BigValueGraphMode.NONE)
        .no_value("no data")
        .span(6)
        .height(6),
        statetimeline.Panel()
        .title("Path")
        .description("The path that answered, per device.")
        .with_target(query(PATH_NUMBER, "{{instance}} {{device}}").ref_id("A"))
        .mappings([PATH_NAMES])
        .merge_values(True)
        .show_value(VisibilityMode.AUTO)
        .span(18)
        .height(6),
    ]


def request_panels() -> list[Panel]:
    return [
        lines("reqps", rate_of("fdmoe_request_duration_seconds_count", "path"))
        .title("Requests by path")
        .description("Requests answered per second, by the path that answered them.")
        .span(8)
        .height(8),
        lines("s", latency(0.5), latency(0.99))
        .title("Latency by path")
        .description("Median and 99th percentile of a request's time in the gateway.")
        .span(8)
        .height(8),
        lines("reqps", rate_of('fdmoe_request_duration_seconds_count{code!~"2.."}', "code"))
        .title("Requests refused or failed, by code")
        .description("4xx: the caller's mistake. 503: turned away. 504: too late. 500: ours.")
        .span(8)
        .height(8),
        lines(
            "none",
            query("sum by (instance) (fdmoe_requests_in_flight)", "{{instance}} in flight"),
            query("sum by (instance) (fdmoe_queue_depth)", "{{instance}} queued"),
        )
        .title("Requests in flight and queued")
        .description("A queue that grows while requests in flight stand still: a stall as the gateway sees it.")
        .span(12)
        .height(7),
        lines("bytes", query("sum by (instance) (fdmoe_arena_used_bytes)", "{{instance}}"))
        .title("Arena in use")
        .description("Shared memory that requests hold, of arena.size_bytes.")
        .span(12)
        .height(7),
        events(increase_of("fdmoe_refused_requests_total", "reason", legend="{{reason}}"))
        .title("Requests turned away, by reason")
        .description("queue_requests, queue_tokens, queue_bytes, uploads and arena: a limit of the gateway is reached.")
        .span(12)
        .height(7),
        events(increase_of("fdmoe_replayed_requests_total", legend="replayed"))
        .title("Replayed requests")
        .description("Requests that were sent again to another worker because the first one stalled or died.")
        .span(12)
        .height(7),
    ]


def recovery_panels() -> list[Panel]:
    return [
        lines("s", query("max by (instance, worker) (fdmoe_heartbeat_age_seconds)", "{{instance}} {{worker}}"))
        .title("Heartbeat age")
        .description("Time since the device last wrote a beat while work is outstanding; 0 while none is.")
        .thresholds(
            dashboard.ThresholdsConfig()
            .mode(ThresholdsMode.ABSOLUTE)
            .steps([Threshold(value=None, color="green"), Threshold(value=STALE_HEARTBEAT_S, color="red")])
        )
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE))
        .span(12)
        .height(7),
        statetimeline.Panel()
        .title("Worker states")
        .description("One row for every state a worker has been in, filled while it was in it.")
        .with_target(
            query(
                "max by (instance, worker, state) (fdmoe_worker_state) == 1", "{{instance}} {{worker}}: {{state}}"
            ).ref_id("A")
        )
        .mappings([ValueMap({"1": ValueMappingResult(text="in this state", color="blue", index=0)})])
        .show_value(VisibilityMode.NEVER)
        .span(12)
        .height(7),
        events(
            increase_of("fdmoe_path_switches_total", "from", "to", "reason", legend="{{from}} to {{to}}: {{reason}}")
        )
        .title("Path switches")
        .description("Changes of the serving path, with their reason.")
        .span(8)
        .height(7),
        events(increase_of("fdmoe_stalls_total", "cause", legend="{{cause}}"))
        .title("Stalls")
        .description("Stalls that the watchdog has detected, by cause.")
        .span(8)
        .height(7),
        events(increase_of("fdmoe_worker_restarts_total", "reason", legend="{{reason}}"))
        .title("Worker restarts")
        .description("Workers started again after their process was ended, by reason.")
        .span(8)
        .height(7),
    ]


def service_dashboard() -> str:
    """The dashboard's JSON text, the same bytes for the same program."""
    everything = VariableOption(selected=True, text="All", value="$__all")
    service = (
        dashboard.Dashboard("fdmoe service")
        .uid("fdmoe-service")
        .description("Is the MoE service answering, on which path, and what has the watchdog done about it?")
        .tags(["fdmoe"])
        .readonly()
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(
            dashboard.QueryVariable("device")
            .label("Device")
            .datasource(SOURCE)
            .query("label_values(fdmoe_path_active, device)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(everything)
        )
    )
    panel_id = 0
    for title, panels in (
        ("Serving", serving_panels()),
        ("Requests", request_panels()),
        ("Watchdog", recovery_panels()),
    ):
        panel_id += 1
        service.with_row(dashboard.Row(title).id(panel_id))
        for panel in panels:
            panel_id += 1
            service.with_panel(panel.id(panel_id).datasource(SOURCE))
    return json.dumps(service.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    OUTPUT.write_text(service_dashboard(), encoding="utf-8")
