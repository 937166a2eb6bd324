"""Is the service answering, on which path, how fast, and how much of its budget is left?"""

from __future__ import annotations

from fdmoe_dashboards import objectives, queries
from fdmoe_dashboards.frame import Board, board
from fdmoe_dashboards.objectives import AVAILABILITY, BUDGET_DAYS, LATENCY, LATENCY_THRESHOLD_S, Objective
from fdmoe_dashboards.panels import (
    Panel,
    States,
    events,
    heat_map,
    limits,
    lines,
    number,
    runbooks,
    state,
    timeline,
)
from fdmoe_dashboards.queries import gauge, increase_of, now, quantile, query, rate_of, series

# One number per device, so that the timeline has one row per device and a colour per path. The watchdog sets exactly
# one of a device's paths to 1, and none while no worker serves: the sum is that path's number, or 0.
_NUMBERS = {"fused": 1, "shadow": 2, "baseline": 3}
PATH = "sum by (instance, device) ({})".format(
    " or ".join(f"{place} * " + series("fdmoe_path_active", f'path="{path}"') for path, place in _NUMBERS.items())
)
PATHS: States = {
    "0": ("not serving", "red"),
    "1": ("fused", "green"),
    "2": ("shadow", "yellow"),
    "3": ("baseline", "orange"),
}
_DEVICE = "{{instance}} {{device}}"
# error budgets are of all pods together, and their alerts have no pod
_FIRING = (
    'ALERTS{cluster=~"$cluster", namespace=~"$namespace", pod=~"$pod|", alertname=~"Fdmoe.+", alertstate="firing"}'
)


def dashboard() -> Board:
    return board(
        "fdmoe-service",
        "fdmoe service",
        "Is the MoE service answering, on which path, how fast, and how much of its budget is left?",
        (("Serving", _serving()), ("Objectives", _objectives()), ("Requests", _requests()), ("Load", _load())),
    )


def _serving() -> list[Panel]:
    return [
        runbooks(
            state(
                "Path now",
                "The path that answers. In shadow the baseline answers and the fused path is compared with it.",
                now(PATH, _DEVICE),
                PATHS,
            ),
            "not-serving",
            "on-baseline",
        ),
        timeline("Path", "The path that answered, per device.", query(PATH, _DEVICE), PATHS, width=14, height=6),
        number(
            "Alerts firing",
            "Alerts of rules/alerts.yaml that fire now.",
            "none",
            now(f"count({_FIRING}) or vector(0)", "firing"),
            width=4,
        ),
    ]


def _objectives() -> list[Panel]:
    return [*_objective(AVAILABILITY, "answered 5xx"), *_objective(LATENCY, f"slower than {LATENCY_THRESHOLD_S} s")]


def _objective(objective: Objective, what: str) -> list[Panel]:
    title, page = objective.name.capitalize(), f"{objective.name}-burn"
    burns = [
        query(f"{_bad(objective, window)} / {objective.budget:g}", f"{{{{job}}}} {window}") for window in ("1h", "6h")
    ]
    fast = sorted({burn.rate for burn in objectives.BURNS if burn.severity == "critical"})
    return [
        runbooks(
            number(
                f"{title}: budget left",
                f"Of {BUDGET_DAYS} days' budget: {objective.budget:.2%} of the requests may be {what}.",
                "percentunit",
                now(f"1 - {_bad(objective, f'{BUDGET_DAYS}d')} / {objective.budget:g}", "{{job}}"),
                0,
                width=5,
                height=7,
            ),
            page,
        ),
        runbooks(
            limits(
                lines(
                    f"{title}: burn rate",
                    "How many times as fast as it may the budget burns; at 1 it lasts just as long as planned. At the "
                    "lines somebody is called.",
                    "none",
                    *burns,
                    width=7,
                ),
                *fast,
            ),
            page,
        ),
    ]


def _bad(objective: Objective, window: str) -> str:
    """The share of bad requests; over the whole budget's time out of the rates of 5 minutes."""
    long = window == f"{BUDGET_DAYS}d"
    bad, all_ = (
        f"sum_over_time({series(f'instance:{name}:rate5m')}[{window}])"
        if long
        else series(f"instance:{name}:rate{window}")
        for name in (objective.bad, objective.all)
    )
    return f"(sum by (job) ({bad}) / sum by (job) ({all_}))"


def _requests() -> list[Panel]:
    histogram = "fdmoe_request_duration_seconds"
    return [
        lines(
            "Requests by path",
            "Requests answered per second, by the path that answered them.",
            "reqps",
            rate_of(f"{histogram}_count", "path"),
        ),
        runbooks(
            lines(
                "Latency by path",
                "Median and 99th percentile of a request's time in the gateway.",
                "s",
                quantile(0.5, histogram, "path"),
                quantile(0.99, histogram, "path"),
            ),
            "latency-burn",
        ),
        runbooks(
            lines(
                "Refused or failed, by code",
                "4xx: the caller's mistake. 499: the caller went away. 503: turned away. 504: too late. 500: ours.",
                "reqps",
                rate_of(f"{histogram}_count", "code", matchers=('code!~"2.."',)),
            ),
            "availability-burn",
        ),
        heat_map(
            "Latency",
            "How many requests took how long, all paths together.",
            "s",
            queries.buckets_of(histogram),
        ),
        lines(
            "Tokens by layer and path",
            "Tokens of answered requests per second.",
            "short",
            rate_of("fdmoe_request_tokens_total", "layer", "path"),
            width=12,
        ),
    ]


def _load() -> list[Panel]:
    return [
        runbooks(
            lines(
                "In flight and queued",
                "A queue that grows while requests in flight stand still: a stall as the gateway sees it.",
                "none",
                query(f"sum by (instance) ({series('fdmoe_requests_in_flight')})", "{{instance}} in flight"),
                query(f"sum by (instance) ({series('fdmoe_queue_depth')})", "{{instance}} queued"),
            ),
            "queue-saturated",
        ),
        lines(
            "Arena in use",
            "Shared memory that requests hold, of arena.size_bytes.",
            "bytes",
            gauge("fdmoe_arena_used_bytes", by="sum"),
        ),
        heat_map(
            "Tokens of a batch",
            "Batches sent to workers, by their tokens.",
            "none",
            queries.buckets_of("fdmoe_batch_tokens"),
            width=8,
        ),
        runbooks(
            events(
                "Turned away, by reason",
                "queue_requests, queue_tokens, queue_bytes, uploads and arena: a limit of the gateway is reached.",
                increase_of("fdmoe_refused_requests_total", "reason"),
                width=12,
            ),
            "queue-saturated",
        ),
        events(
            "Replayed requests",
            "Requests that were sent again to another worker because the first one stalled or died.",
            increase_of("fdmoe_replayed_requests_total", legend="replayed"),
            width=12,
        ),
    ]
