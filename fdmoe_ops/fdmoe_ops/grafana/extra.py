"""Whether the extra is installed that brings grafana-client."""

from __future__ import annotations

import importlib.util

from fdmoe_ops.settings import SettingsError


def require() -> None:
    """Raises SettingsError where grafana-client is missing. Imports nothing."""
    if importlib.util.find_spec("grafana_client") is None:
        raise SettingsError("grafana-client is not installed: pip install 'fdmoe-ops[grafana]'")
