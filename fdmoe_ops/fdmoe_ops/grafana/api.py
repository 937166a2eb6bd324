"""Grafana's HTTP API, as far as it is used here, through grafana-client; each call has a timeout and clear errors.

The documents are Grafana's own: https://grafana.com/docs/grafana/latest/developers/http_api/. Redirects are not
followed: a POST would come out of one as a GET, and the token would go where nobody has sent it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import quote, urlsplit

import requests
from grafana_client import GrafanaApi
from grafana_client.client import GrafanaException

from fdmoe_ops.grafana.errors import Changed, GrafanaError, NotAllowed, NotFound, Unavailable, UnknownToken
from fdmoe_ops.settings import GrafanaSettings
from fdmoe_ops.version import version

Document = dict[str, Any]
TOO_MANY_REQUESTS = 429
_BUSY = (408, TOO_MANY_REQUESTS)


class Grafana:
    """One Grafana, with one token. All methods raise GrafanaError."""

    def __init__(self, settings: GrafanaSettings, token: str) -> None:
        assert settings.url is not None, "whoever asks a Grafana knows its address"
        self.url = settings.url
        self._timeout_s = settings.timeout_s
        parts = urlsplit(settings.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        self._api = GrafanaApi(
            token,
            host=host,
            port=parts.port,
            protocol=parts.scheme,
            url_path_prefix=f"{parts.path.strip('/')}/".lstrip("/"),
            timeout=settings.timeout_s,
            user_agent=f"fdmoe-ops/{version()}",
        )
        session = self._api.client.s
        session.max_redirects = 0
        session.hooks["response"].append(self._remember)
        self._retry_after_s = 0.0

    # ---- what there is

    def version(self) -> str:
        """As "11.6.0"; "" where it does not say."""
        health = self._object("say how it is", self._api.health.check)
        return str(health.get("version") or "")

    def folder(self, uid: str) -> Document:
        """Raises NotFound."""
        return self._object(f"read the folder {uid}", lambda: self._api.folder.get_folder(uid), "folders:read")

    def data_source(self, name: str) -> Document:
        """By its uid, or else by its name. Raises NotFound."""
        what, escaped = f"read the data source {name}", quote(name, safe="")
        try:
            return self._object(
                what, lambda: self._api.datasource.get_datasource_by_uid(escaped), "datasources:read"
            )  # fmt: skip
        except NotFound:
            return self._object(
                what, lambda: self._api.datasource.get_datasource_by_name(escaped), "datasources:read"
            )  # fmt: skip

    def data_sources(self) -> list[Document]:
        return self._list("list the data sources", self._api.datasource.list_datasources, "datasources:read")

    def dashboard(self, uid: str) -> tuple[Document, Document]:
        """The dashboard and what Grafana knows of it. Raises NotFound."""
        what = f"read the dashboard {uid}"
        answer = self._object(what, lambda: self._api.dashboard.get_dashboard(uid), "dashboards:read")
        dashboard, meta = answer.get("dashboard"), answer.get("meta")
        if not isinstance(dashboard, dict) or not isinstance(meta, dict):
            raise self._nonsense(what)
        return dashboard, meta

    def last_message(self, uid: str) -> str:
        """What the last one to save the dashboard wrote into its history; "" where that is not known."""
        path = f"/dashboards/uid/{uid}/versions?limit=1"
        try:
            answer = self._ask(
                f"read the history of the dashboard {uid}", lambda: self._api.client.GET(path), "dashboards:write"
            )
        except NotFound:
            return ""
        # a list before Grafana 11.4, then an object that holds it
        versions = answer.get("versions") if isinstance(answer, dict) else answer
        last = versions[0] if isinstance(versions, list) and versions else {}
        return str(last.get("message") or "") if isinstance(last, dict) else ""

    def find_annotations(self, time_ms: int, tags: tuple[str, ...]) -> list[Document]:
        return self._list(
            "look for an annotation",
            lambda: self._api.annotations.get_annotation(
                time_from=time_ms, time_to=time_ms + 1, ann_type="annotation", tags=[quote(tag) for tag in tags]
            ),
            "annotations:read",
        )

    # ---- what is written

    def create_folder(self, uid: str, title: str) -> Document:
        """Raises Changed where another folder has that title or uid."""
        return self._object(
            f"make the folder {uid}", lambda: self._api.folder.create_folder(title, uid), "folders:create"
        )  # fmt: skip

    def save_dashboard(self, dashboard: Document, *, folder_uid: str, message: str, overwrite: bool) -> Document:
        """Raises Changed where its version is not the one that is there, unless it is to be overwritten."""
        body = {"dashboard": dashboard, "folderUid": folder_uid, "message": message, "overwrite": overwrite}
        return self._object(
            f"save the dashboard {dashboard['uid']}",
            lambda: self._api.dashboard.update_dashboard(body),
            "dashboards:create and dashboards:write",
        )

    def add_annotation(self, time_ms: int, end_ms: int | None, tags: tuple[str, ...], text: str) -> int:
        """Its id."""
        what = "write an annotation"
        answer = self._object(
            what,
            lambda: self._api.annotations.add_annotation(
                time_from=time_ms, time_to=end_ms or time_ms, tags=list(tags), text=text
            ),
            "annotations:create",
        )
        found = answer.get("id")
        if not isinstance(found, int):
            raise self._nonsense(what)
        return found

    def change_annotation(
        self, annotation_id: int, time_ms: int, end_ms: int | None, tags: tuple[str, ...], text: str
    ) -> None:
        """Raises NotFound."""
        self._object(
            "change an annotation",
            lambda: self._api.annotations.update_annotation(
                annotation_id, time_from=time_ms, time_to=end_ms or time_ms, tags=list(tags), text=text
            ),
            "annotations:write",
        )

    # ---- one call

    def _object(self, what: str, call: Callable[[], object], permission: str = "") -> Document:
        answer = self._ask(what, call, permission)
        if not isinstance(answer, dict):
            raise self._nonsense(what)
        return answer

    def _list(self, what: str, call: Callable[[], object], permission: str) -> list[Document]:
        answer = self._ask(what, call, permission)
        if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
            raise self._nonsense(what)
        return answer

    def _ask(self, what: str, call: Callable[[], object], permission: str) -> Any:
        try:
            return call()
        except GrafanaException as error:
            self._explain(what, permission, error)
        except requests.exceptions.TooManyRedirects as error:
            place = error.response.headers["Location"] if error.response is not None else "elsewhere"
            raise GrafanaError(
                f"{self.url} sends us on to {place}: give the address that it has (grafana.url)"
            ) from error
        except requests.exceptions.SSLError as error:
            raise GrafanaError(
                f"no secure connection to {self.url}: {_reason(error)}; REQUESTS_CA_BUNDLE names a file of "
                "certificates that are trusted"
            ) from error
        except requests.exceptions.Timeout as error:
            raise Unavailable(f"Grafana at {self.url} did not answer in {self._timeout_s:g} s") from error
        except requests.exceptions.JSONDecodeError as error:
            raise self._nonsense(what) from error
        except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise Unavailable(f"no connection to Grafana at {self.url}: {_reason(error)}") from error
        except requests.exceptions.RequestException as error:
            raise GrafanaError(f"{self.url} cannot be asked to {what}: {_reason(error)}") from error

    def _explain(self, what: str, permission: str, error: GrafanaException) -> NoReturn:
        status, said = error.status_code, _message(error.response)
        told = f"({status}{f': {said}' if said else ''})"
        if status == 401:
            raise UnknownToken(
                f"Grafana at {self.url} does not take the token {told}: is it this Grafana's, and has it not expired?"
            ) from error
        if status == 403:
            needed = f": the token's service account needs {permission}" if permission else ""
            raise NotAllowed(f"Grafana at {self.url} did not let us {what} {told}{needed}") from error
        if status == 404:
            raise NotFound(f"Grafana at {self.url} could not {what} {told}") from error
        if status in (409, 412):
            raise Changed(f"Grafana at {self.url} did not {what} {told}") from error
        if status in _BUSY or status >= 500:
            raise Unavailable(f"Grafana at {self.url} could not {what} {told}", self._retry_after_s) from error
        raise GrafanaError(f"Grafana at {self.url} did not {what} {told}") from error

    def _nonsense(self, what: str) -> GrafanaError:
        return GrafanaError(f"asked to {what}, {self.url} gave no answer of Grafana's: is there one at this address?")

    def _remember(self, response: requests.Response, **_: object) -> None:
        """Only the whole response says how long Grafana wants to be left alone."""
        value = response.headers.get("Retry-After", "")
        self._retry_after_s = float(value) if re.fullmatch(r"[0-9]{1,4}", value) else 0.0


def _message(response: object) -> str:
    """Grafana's own words, on one line and not too many of them."""
    said = response.get("message") if isinstance(response, dict) else response
    return " ".join((said if isinstance(said, str) else json.dumps(said)).split())[:200] if said else ""


def _reason(error: requests.exceptions.RequestException) -> str:
    """The innermost cause; the outer ones are the library's affair."""
    inner: BaseException = error
    while (below := inner.__cause__ or inner.__context__) is not None:
        inner = below
    return (inner.strerror if isinstance(inner, OSError) else None) or str(inner) or type(inner).__name__
