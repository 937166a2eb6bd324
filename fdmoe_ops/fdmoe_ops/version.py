"""The version of what is installed."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """fdmoe-ops' version, or "0+source" where it runs from a source tree that was not installed."""
    try:
        return importlib.metadata.version("fdmoe-ops")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
