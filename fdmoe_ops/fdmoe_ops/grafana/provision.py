"""Bringing a Grafana to the state that is wanted: folder, data source, dashboards. Doing it twice changes nothing.

Each step reads first and writes only what differs, so a step whose answer was lost is simply done again. What was
saved by us says so in the dashboard's history: whoever has saved it since has edited it, and is not overwritten unless
that is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from fdmoe_ops.grafana import dashboards
from fdmoe_ops.grafana.api import Document, Grafana
from fdmoe_ops.grafana.dashboards import Dashboard
from fdmoe_ops.grafana.errors import Changed, GrafanaError, NotAllowed, NotFound
from fdmoe_ops.grafana.patience import Patience
from fdmoe_ops.settings import GrafanaSettings
from fdmoe_ops.version import version

# the schema that the dashboards are generated for
OLDEST = (11, 6)
SAVED_BY_US = "fdmoe-ops "


class State(StrEnum):
    MISSING = "missing"
    SAME = "same"
    DIFFERS = "differs"


class Outcome(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


@dataclass(frozen=True)
class Found:
    """A dashboard of ours and what Grafana has in its place; `stored` and `meta` are empty where it has nothing."""

    dashboard: Dashboard
    state: State
    stored: Document
    meta: Document

    @property
    def version(self) -> int | None:
        found = self.stored.get("version")
        return found if isinstance(found, int) else None


@dataclass(frozen=True)
class Pushed:
    """`reason`: why it was refused."""

    found: Found
    outcome: Outcome
    url: str
    reason: str = ""


class Provisioner:
    """`warn` is told what could not be checked. All methods raise GrafanaError."""

    def __init__(
        self, grafana: Grafana, settings: GrafanaSettings, patience: Patience, warn: Callable[[str], None]
    ) -> None:
        self._grafana = grafana
        self._settings = settings
        self._patience = patience
        self._warn = warn

    # ---- once

    def check_version(self) -> None:
        oldest = ".".join(map(str, OLDEST))
        try:
            told = self._patience.persist(self._grafana.version)
        except NotFound as error:
            raise GrafanaError(f"{error}; is the path in grafana.url the one that Grafana is served under?") from error
        match = re.match(r"(\d+)\.(\d+)", told)
        if match is None:
            self._warn(f"Grafana at {self._grafana.url} does not say its version; {oldest} is the oldest that will do")
        elif (int(match[1]), int(match[2])) < OLDEST:
            raise GrafanaError(
                f"Grafana at {self._grafana.url} has version {told}; the dashboards need {oldest} or newer"
            )  # fmt: skip

    def data_source(self) -> Document | None:
        """The Prometheus data source that the settings name; None where they name none, and there is one at least."""
        name = self._settings.datasource
        if name is not None:
            try:
                found = self._patience.persist(lambda: self._grafana.data_source(name))
            except NotFound as error:
                raise GrafanaError(f"grafana.datasource is {name!r}; no data source has that uid or name") from error
            if found.get("type") != "prometheus":
                raise GrafanaError(
                    f"grafana.datasource is {name!r}, of type {found.get('type')}; a Prometheus data source is needed"
                )  # fmt: skip
            return found
        try:
            sources = self._patience.persist(self._grafana.data_sources)
        except NotAllowed as error:
            # an Editor's token may write dashboards and not read data sources
            self._warn(f"whether there is a Prometheus data source is not known: {error}")
            return None
        if not any(source.get("type") == "prometheus" for source in sources):
            raise GrafanaError(f"Grafana at {self._grafana.url} has no Prometheus data source; add one first")
        return None

    def provide_folder(self) -> bool:
        """Whether it had to be made."""
        uid, title = self._settings.folder_uid, self._settings.folder_title
        made = False

        def provide() -> None:
            nonlocal made
            try:
                self._grafana.folder(uid)
            except NotFound:
                made = True
                self._grafana.create_folder(uid, title)

        try:
            self._patience.persist(provide)
        except Changed as error:
            raise GrafanaError(f"{error}; --folder-title or --folder-uid names another") from error
        return made

    # ---- each dashboard

    def look(self, dashboard: Dashboard) -> Found:
        return self._patience.persist(lambda: self._look(dashboard))

    def push(self, dashboard: Dashboard, *, overwrite: bool) -> Pushed:
        written: Outcome | None = None

        def push() -> Pushed:
            nonlocal written
            found = self._look(dashboard)
            if found.state is State.SAME:
                return Pushed(found, written or Outcome.UNCHANGED, self._url(found.meta))
            if found.state is State.DIFFERS and not overwrite and (reason := self._edited(found)):
                return Pushed(found, Outcome.REFUSED, self._url(found.meta), reason)
            # from here on the answer may be lost although it was written: the next look tells
            written = Outcome.CREATED if found.state is State.MISSING else Outcome.UPDATED
            try:
                return Pushed(found, written, self._url(self._save(found, overwrite=overwrite)))
            except Changed as error:
                return Pushed(found, Outcome.REFUSED, self._url(found.meta), str(error))

        return self._patience.persist(push)

    def difference(self, found: Found) -> Iterator[str]:
        """What a push would change, as a unified diff; the folder is its first line where it is another."""
        uid = found.dashboard.uid
        there = "nothing" if found.state is State.MISSING else f"{uid} in Grafana, version {found.version}"
        folder = found.meta.get("folderUid") or "no folder"
        if found.state is State.DIFFERS and folder != self._settings.folder_uid:
            yield f"{uid}: from folder {folder} to folder {self._settings.folder_uid}"
        yield from dashboards.difference(found.dashboard.model, found.stored, (there, f"{uid} of {_us()}"))

    def url(self, found: Found) -> str:
        """Where the dashboard is or will be."""
        return self._url(found.meta) or f"{self._grafana.url}/d/{found.dashboard.uid}"

    def _look(self, dashboard: Dashboard) -> Found:
        try:
            stored, meta = self._grafana.dashboard(dashboard.uid)
        except NotFound:
            return Found(dashboard, State.MISSING, {}, {})
        in_place = (meta.get("folderUid") or "") == self._settings.folder_uid
        is_same = in_place and dashboards.same(dashboard.model, stored)
        return Found(dashboard, State.SAME if is_same else State.DIFFERS, stored, meta)

    def _edited(self, found: Found) -> str:
        """By whom it was saved since we did, or ""."""
        uid = found.dashboard.uid
        if self._grafana.last_message(uid).startswith(SAVED_BY_US):
            return ""
        who, when = found.meta.get("updatedBy") or "somebody", found.meta.get("updated") or "some time"
        return f"version {found.version} was saved by {who} at {when}, not by fdmoe"

    def _save(self, found: Found, *, overwrite: bool) -> Document:
        numbers = {"id": found.stored.get("id"), "version": found.version or 0}
        return self._grafana.save_dashboard(
            found.dashboard.model | numbers,
            folder_uid=self._settings.folder_uid,
            message=f"{SAVED_BY_US}{version()}",
            overwrite=overwrite,
        )

    def _url(self, answer: Document) -> str:
        """Grafana's own path, which begins with the one that it is served under."""
        path = answer.get("url")
        if not isinstance(path, str) or not path.startswith("/"):
            return ""
        scheme, _, rest = self._grafana.url.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}{path}"


def _us() -> str:
    return f"fdmoe-ops {version()}"
