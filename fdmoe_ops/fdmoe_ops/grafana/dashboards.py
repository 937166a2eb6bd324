"""The dashboards of this project: where they are, and what of them is compared."""

from __future__ import annotations

import copy
import difflib
import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fdmoe_ops.settings import SettingsError

Document = dict[str, Any]
# Grafana counts them itself
_GRAFANAS_OWN = ("id", "version")
# where our dashboards' links to runbooks lead
_RUNBOOKS = "dashboards/runbooks/"


@dataclass(frozen=True)
class Dashboard:
    """`model`: the dashboard's JSON document, without what Grafana counts."""

    uid: str
    title: str
    model: Document


def own_directory() -> Path:
    """In the package where it has been installed, else in the source tree beside it."""
    package = importlib.resources.files("fdmoe_ops")
    assert isinstance(package, Path), "the package is installed as files"
    installed = package / "dashboards"
    return installed if installed.is_dir() else package.parents[1] / "dashboards"


def find(directory: Path) -> tuple[Dashboard, ...]:
    """All of a directory, by uid. Raises SettingsError for one without any, and for files that are no dashboards."""
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix == ".json")
    except OSError as error:
        raise SettingsError(f"no dashboards in {directory}: {error.strerror or error}") from error
    if not files:
        raise SettingsError(f"no dashboards in {directory}: it has no file *.json")
    dashboards = sorted((_read(file) for file in files), key=lambda dashboard: dashboard.uid)
    twice = [uid for uid, count in Counter(dashboard.uid for dashboard in dashboards).items() if count > 1]
    if twice:
        raise SettingsError(f"two dashboards in {directory} have the uid {twice[0]}")
    return tuple(dashboards)


def _read(file: Path) -> Dashboard:
    try:
        model = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} is no dashboard: {error}") from error
    uid, title = (model.get("uid"), model.get("title")) if isinstance(model, dict) else (None, None)
    if not isinstance(uid, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", uid):
        raise SettingsError(f"{file} is no dashboard: uid is {uid!r}; 1 to 40 letters, digits, '-' and '_' are allowed")
    if not isinstance(title, str) or not title.strip():
        raise SettingsError(f"{file} is no dashboard: title is {title!r}; a text is needed")
    return Dashboard(uid, title, _counted_by_us(model))


def opened_with(dashboard: Dashboard, source_uid: str, source_name: str) -> Dashboard:
    """The same dashboard, whose variable for the data source begins with this one."""
    model = copy.deepcopy(dashboard.model)
    for variable in model.get("templating", {}).get("list", []):
        if (variable.get("type"), variable.get("query")) == ("datasource", "prometheus"):
            variable["current"] = {"selected": True, "text": source_name, "value": source_uid}
    return Dashboard(dashboard.uid, dashboard.title, model)


def with_runbooks_at(dashboard: Dashboard, url: str) -> Dashboard:
    """The same dashboard, whose links to runbooks lead there."""

    def moved(part: Any) -> Any:
        match part:
            case dict():
                return {key: moved(value) for key, value in part.items()}
            case list():
                return [moved(value) for value in part]
            case str() if part.startswith(_RUNBOOKS):
                return f"{url.rstrip('/')}/{part.removeprefix(_RUNBOOKS)}"
            case _:
                return part

    return Dashboard(dashboard.uid, dashboard.title, moved(dashboard.model))


def same(ours: Document, stored: Document) -> bool:
    return _counted_by_us(ours) == _counted_by_us(stored)


def difference(ours: Document, stored: Document, names: tuple[str, str]) -> Iterator[str]:
    """The lines of a unified diff from what is stored to what would be; `names` are those of the two."""
    before, after = (_lines(_counted_by_us(model)) for model in (stored, ours))
    return difflib.unified_diff(before, after, *names, lineterm="")


def _counted_by_us(model: Document) -> Document:
    return {key: value for key, value in model.items() if key not in _GRAFANAS_OWN}


def _lines(model: Document) -> list[str]:
    return json.dumps(model, indent=2, sort_keys=True, ensure_ascii=False).splitlines() if model else []
