"""What can go wrong between this project and a Grafana; the texts are for people and say what to do.

GrafanaError
├── Unavailable     another try may work: no connection, no answer in time, 429, 5xx
├── NotAllowed      401, 403: the token is unknown or may not do this
├── NotFound        404
└── Changed         409, 412: somebody else has changed what was to be written
"""

from __future__ import annotations


class GrafanaError(Exception):
    """Another try would end the same way."""


class Unavailable(GrafanaError):
    """`retry_after_s`: how long Grafana itself wants to be left alone, 0 where it did not say."""

    def __init__(self, text: str, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class UnknownToken(GrafanaError):
    pass


class NotAllowed(GrafanaError):
    pass


class NotFound(GrafanaError):
    pass


class Changed(GrafanaError):
    pass
