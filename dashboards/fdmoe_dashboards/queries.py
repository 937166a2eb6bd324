"""PromQL of the panels. Every selector honours the dashboards' variables.

All of a variable is `.*`, which an absent label matches too: a Prometheus that adds no cluster, namespace and pod shows
everything.
"""

from __future__ import annotations

from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.dashboard import DataSourceRef
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_PLACE = ("cluster", "namespace", "pod")
# families with a device each, but the one of them that counts for the whole tree, as all others do; and those that
# know a layer
_OF_DEVICES = (
    "fdmoe_path_active",
    "fdmoe_worker_",
    "fdmoe_heartbeat_",
    "fdmoe_last_heartbeat_",
    "fdmoe_stalled_ctas",
    "fdmoe_restart_budget_",
    "fdmoe_device_work_items",
    "fdmoe_gpu_",
)
_OF_TREES = ("fdmoe_worker_restarts",)
_OF_LAYERS = ("fdmoe_expert_",)


def series(name: str, *matchers: str) -> str:
    """A selector: `name` with the dashboards' variables, and more matchers such as `path="fused"`."""
    variables = [f'{label}=~"${label}"' for label in _PLACE]
    if name.startswith(_OF_DEVICES) and not name.startswith(_OF_TREES):
        variables.append('device=~"$device"')
    if name.startswith(_OF_LAYERS):
        variables.append('layer=~"$layer"')
    return f"{name}{{{', '.join((*variables, *matchers))}}}"


def query(expression: str, legend: str) -> Dataquery:
    return Dataquery().expr(expression).legend_format(legend).datasource(SOURCE).range()


def now(expression: str, legend: str) -> Dataquery:
    """Only the present: a range's last value would be that of a target that is no longer there."""
    return Dataquery().expr(expression).legend_format(legend).datasource(SOURCE).instant()


def table(expression: str) -> Dataquery:
    return now(expression, "").format(PromQueryFormat.TABLE)


def gauge(name: str, *labels: str, matchers: tuple[str, ...] = (), by: str = "max") -> Dataquery:
    """A line for each instance and each value of `labels`."""
    legend = " ".join(f"{{{{{label}}}}}" for label in ("instance", *labels))
    return query(f"{by} by ({', '.join(('instance', *labels))}) ({series(name, *matchers)})", legend)


def rate_of(counter: str, *labels: str, matchers: tuple[str, ...] = ()) -> Dataquery:
    return query(f"sum by ({', '.join(labels)}) ({rate(counter, *matchers)})", _legend(labels))


def rate(counter: str, *matchers: str) -> str:
    return f"rate({series(counter, *matchers)}[$__rate_interval])"


def increase(counter: str, *matchers: str) -> str:
    """How much a counter rose. A series with labels may be born with its first event, at 1: `increase` sees no rise
    there, so a series that is younger than the interval counts with all it has."""
    chosen = series(counter, *matchers)
    return f"({chosen} unless {chosen} offset $__rate_interval) or increase({chosen}[$__rate_interval])"


def increase_of(counter: str, *labels: str, legend: str = "", matchers: tuple[str, ...] = ()) -> Dataquery:
    total = increase(counter, *matchers)
    summed = f"sum by ({', '.join(labels)}) ({total})" if labels else f"sum ({total})"
    return query(summed, legend or _legend(labels))


def quantile(share: float, histogram: str, *labels: str, window: str = "$__rate_interval", of: str = "") -> Dataquery:
    """Of a histogram, for each value of `labels`; `of` names it beside others."""
    buckets = f"sum by ({', '.join(('le', *labels))}) (rate({series(f'{histogram}_bucket')}[{window}]))"
    legend = " ".join((*filter(None, [of]), *(f"{{{{{label}}}}}" for label in labels), f"p{share * 100:.0f}"))
    return query(f"histogram_quantile({share}, {buckets})", legend)


def buckets_of(histogram: str, *matchers: str) -> Dataquery:
    """The buckets as a heat map wants them."""
    expression = f"sum by (le) (increase({series(f'{histogram}_bucket', *matchers)}[$__rate_interval]))"
    return query(expression, "{{le}}").format(PromQueryFormat.HEATMAP)


def _legend(labels: tuple[str, ...]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)
