"""Log lines as the settings want them (fdmoe_watchdog.log)."""

from __future__ import annotations

from fdmoe_ops.settings import LogSettings
from fdmoe_watchdog import log

flush = log.flush


def configure(settings: LogSettings, process: str) -> None:
    """Set logging up for this process; `process` is its name in each line."""
    log.configure(settings.format.value, settings.level.value, process)
