"""Log lines as the settings want them (fdmoe_watchdog.log)."""

from __future__ import annotations

from fdmoe_ops.settings import LogSettings
from fdmoe_watchdog import log


def configure(settings: LogSettings, process: str) -> None:
    """Set logging up for this process; `process` is its name in each line."""
    log.configure(settings.format.value, settings.level.value, process)


def flush(timeout_s: float = 0.5) -> None:
    """Before this process ends without the interpreter's own end."""
    log.flush(timeout_s)
