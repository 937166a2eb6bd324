"""Puts the dashboards, which live beside this distribution in the repository, into what is built of it.

A wheel has them in the package, a source archive in a folder of its own, from which a wheel is built where there is no
repository. An editable installation reads the repository's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DashboardsHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        folder = next(place for place in (root / "dashboards", root.parent / "dashboards") if place.is_dir())
        target = "fdmoe_ops/dashboards" if self.target_name == "wheel" else "dashboards"
        for file in sorted(folder.glob("*.json")):
            build_data["force_include"][str(file)] = f"{target}/{file.name}"
