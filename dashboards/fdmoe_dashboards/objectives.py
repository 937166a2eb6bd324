"""What is promised to those who send requests, and how fast the budget of what may go wrong may burn.

Every number of an SLO is here and nowhere else. The windows and rates are those of the Google SRE workbook
(sre.google/workbook/alerting-on-slos, "Multiwindow, Multi-Burn-Rate Alerts").
"""

from __future__ import annotations

from dataclasses import dataclass

BUDGET_DAYS = 30
# A request slower than this is a slow one: the promise for a stall that an abort ends, so that one that was dealt with
# in time costs no budget. It must be a bound of fdmoe_request_duration_seconds.
LATENCY_THRESHOLD_S = 0.25
# One request that fails while ten are sent is no outage: fewer in the long window raise nothing.
LEAST_EVENTS = 10


@dataclass(frozen=True)
class Objective:
    """`bad` and `all` name recorded series of requests per second: the second is what the first is a share of."""

    name: str
    share: float
    bad: str
    all: str

    @property
    def budget(self) -> float:
        """The share that may be bad."""
        return round(1 - self.share, 10)


@dataclass(frozen=True)
class Burn:
    """The budget burns `rate` times as fast as it may, in the long window and, still, in the short one."""

    rate: float
    long: str
    short: str
    severity: str


AVAILABILITY = Objective("availability", 0.999, "fdmoe_request_errors", "fdmoe_requests")
LATENCY = Objective("latency", 0.99, "fdmoe_requests_slow", "fdmoe_requests_answered")

BURNS = (
    Burn(14.4, "1h", "5m", "critical"),
    Burn(6, "6h", "30m", "critical"),
    Burn(3, "1d", "2h", "warning"),
    Burn(1, "3d", "6h", "warning"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def seconds(window: str) -> int:
    """Of a window such as 30m."""
    return int(window[:-1]) * _SECONDS[window[-1]]
