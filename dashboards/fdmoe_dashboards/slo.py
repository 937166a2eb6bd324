"""Recording rules and burn-rate alerts that follow from the objectives.

The rates are recorded per gateway, so that dashboards can filter by pod; alerts add up a service's gateways.
"""

from __future__ import annotations

from fdmoe_dashboards.objectives import (
    AVAILABILITY,
    BURNS,
    LATENCY,
    LATENCY_THRESHOLD_S,
    LEAST_EVENTS,
    WINDOWS,
    Burn,
    Objective,
    seconds,
)
from fdmoe_dashboards.rule import Alert, Group, Record

_SERVICE = "cluster, namespace, job"
_LABELS = "layer, path, code"
_COUNT = "fdmoe_request_duration_seconds_count"
_BUCKET = "fdmoe_request_duration_seconds_bucket"
_NONE_YET = "or 0 * fdmoe_requests_in_flight"
_SPEAKING = {"1h": "hour", "6h": "6 hours", "1d": "day", "3d": "3 days"}


def recordings() -> Group:
    return Group("fdmoe-requests", (*_sums(), *(_rate(name, window) for name in _NAMES for window in WINDOWS)))


def alerts() -> Group:
    return Group(
        "fdmoe-objectives",
        (*(_availability(burn) for burn in BURNS), *(_latency(burn) for burn in BURNS)),
    )


_NAMES = (AVAILABILITY.all, AVAILABILITY.bad, LATENCY.all, LATENCY.bad)


def _sums() -> tuple[Record, ...]:
    return (
        Record(
            f"instance:{AVAILABILITY.all}:sum",
            f"sum without ({_LABELS}) ({_COUNT})\n{_NONE_YET}",
            "A series with labels is born with its first event, which no rate sees. Their sum is there from the "
            "gateway's start, at 0, and all parts of it start again together: so the sum comes before the rate.",
        ),
        Record(
            f"instance:{AVAILABILITY.bad}:sum",
            f'sum without ({_LABELS}) ({_COUNT}{{code=~"5.."}})\n{_NONE_YET}',
            "4xx is the caller's mistake, 499 a caller that went away.",
        ),
        Record(f"instance:{LATENCY.all}:sum", f'sum without ({_LABELS}) ({_COUNT}{{code="200"}})\n{_NONE_YET}'),
        Record(
            f"instance:{LATENCY.bad}:sum",
            f'sum without ({_LABELS}) ({_COUNT}{{code="200"}})\n'
            f'  - sum without ({_LABELS}, le) ({_BUCKET}{{code="200", le="{LATENCY_THRESHOLD_S}"}})\n{_NONE_YET}',
            f"Answered, and later than {LATENCY_THRESHOLD_S} s.",
        ),
    )


def _rate(name: str, window: str) -> Record:
    return Record(f"instance:{name}:rate{window}", f"rate(instance:{name}:sum[{window}])")


def _burns(objective: Objective, burn: Burn) -> str:
    """The share that is bad, where it is too large in both windows and not just a few requests."""
    limit = f"{burn.rate:g} * {objective.budget:g}"
    few = f"{_total(objective.bad, burn.long)} * {seconds(burn.long)} >= {LEAST_EVENTS}"
    return "\nand\n".join((*(f"{_share(objective, w)} > {limit}" for w in (burn.long, burn.short)), few))


def _share(objective: Objective, window: str) -> str:
    return f"{_total(objective.bad, window)}\n  / {_total(objective.all, window)}"


def _total(name: str, window: str) -> str:
    return f"sum by ({_SERVICE}) (instance:{name}:rate{window})"


def _alert(objective: Objective, burn: Burn, name: str, summary: str, description: str, runbook: str) -> Alert:
    return Alert(
        name,
        _burns(objective, burn),
        burn.severity,
        summary,
        description,
        runbook,
        labels=(("long", burn.long), ("short", burn.short)),
    )


def _availability(burn: Burn) -> Alert:
    return _alert(
        AVAILABILITY,
        burn,
        "FdmoeAvailabilityBurn",
        "{{ $labels.job }} fails {{ $value | humanizePercentage }} of its requests",
        f"In the last {_SPEAKING[burn.long]} {{{{ $value | humanizePercentage }}}} of the requests were answered 5xx, "
        f"and in the last {burn.short} still too many. {AVAILABILITY.share:.1%} are to succeed: the budget burns "
        f"{_faster(burn)}.",
        "availability-burn",
    )


def _latency(burn: Burn) -> Alert:
    return _alert(
        LATENCY,
        burn,
        "FdmoeLatencyBurn",
        f"{{{{ $labels.job }}}} takes more than {LATENCY_THRESHOLD_S} s for {{{{ $value | humanizePercentage }}}} of "
        "its answers",
        f"In the last {_SPEAKING[burn.long]} {{{{ $value | humanizePercentage }}}} of the answers took more than "
        f"{LATENCY_THRESHOLD_S} s, and in the last {burn.short} still too many. {LATENCY.share:.0%} are to be faster: "
        f"the budget burns {_faster(burn)}.",
        "latency-burn",
    )


def _faster(burn: Burn) -> str:
    return "faster than it may" if burn.rate == 1 else f"more than {burn.rate:g} times as fast as it may"
