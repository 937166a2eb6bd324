"""A Grafana's HTTP API with real sockets and a state of its own, as its documents describe it.

https://grafana.com/docs/grafana/latest/developers/http_api/: folder, data_source, dashboard, dashboard_versions,
annotations. What a request does that is not documented is a violation, which the fixture that starts it looks at.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema

Document = dict[str, Any]
TOKEN = "glsa_0123456789"
PROMETHEUS: Document = {
    "id": 1,
    "uid": "prom-1",
    "name": "Metrics of the fleet",
    "type": "prometheus",
    "isDefault": True,
}
LOKI: Document = {"id": 2, "uid": "loki-1", "name": "Logs", "type": "loki", "isDefault": False}

_UID = {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"}
_TIME = {"type": "integer", "minimum": 10**12}  # ms, not s
_TAGS = {"type": "array", "items": {"type": "string", "maxLength": 100}}
_TEXT = {"type": "string", "minLength": 1}
_BODIES: dict[str, Document] = {
    "folder": {
        "properties": {"uid": _UID, "title": _TEXT, "parentUid": {"type": "string"}},
        "required": ["title"],
    },
    "dashboard": {
        "properties": {
            "dashboard": {
                "type": "object",
                "properties": {
                    "id": {"type": ["integer", "null"]},
                    "uid": _UID,
                    "title": _TEXT,
                    "version": {"type": "integer", "minimum": 0},
                    "schemaVersion": {"type": "integer"},
                    "panels": {"type": "array"},
                },
                "required": ["uid", "title"],
            },
            "folderUid": _UID,
            "message": {"type": "string"},
            "overwrite": {"type": "boolean"},
        },
        "required": ["dashboard"],
    },
    "new annotation": {
        "properties": {
            "dashboardUID": {"type": "string"},
            "panelId": {"type": ["integer", "null"]},
            "time": _TIME,
            "timeEnd": _TIME,
            "tags": _TAGS,
            "text": _TEXT,
        },
        "required": ["text"],
    },
    "annotation": {
        "properties": {"time": _TIME, "timeEnd": _TIME, "tags": _TAGS, "text": _TEXT},
        "required": ["time", "timeEnd", "tags", "text"],
    },
}


class Refusal(Exception):
    def __init__(self, status: int, /, **body: str) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


NO_PERMISSION = "You'll need additional permissions to perform this action. Permissions needed: {}"


@dataclass
class Stored:
    model: Document
    folder: str
    history: list[Document] = field(default_factory=list)

    @property
    def version(self) -> int:
        return len(self.history)


@dataclass
class Trouble:
    """What happens to requests whose "METHOD /path" the pattern finds: `times` of them, or all. `done`: Grafana does
    what it was asked to, and the answer is lost."""

    pattern: str
    status: int = 0
    body: bytes = b""
    kind: str = "application/json; charset=UTF-8"
    headers: tuple[tuple[str, str], ...] = ()
    times: int = 10**9
    done: bool = False
    hang: bool = False
    hang_up: bool = False


class FakeGrafana:
    """Serves until stopped. `prefix`: the path that it is served under, as in "/grafana"."""

    def __init__(self, version: str = "11.6.0", prefix: str = "") -> None:
        self.version, self.prefix = version, prefix
        self.may_read_sources = True
        self.may_write = True
        self.sources: list[Document] = [LOKI, PROMETHEUS]
        self.folders: dict[str, Document] = {}
        self.dashboards: dict[str, Stored] = {}
        self.annotations: dict[int, Document] = {}
        self.troubles: list[Trouble] = []
        self.requests: list[str] = []
        self.violations: list[str] = []
        self.changed = threading.Condition()
        self._released = threading.Event()
        grafana = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body are two writes, and 40 ms apart with it

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def do_GET(self) -> None:
                grafana._serve(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                grafana.violations.append(f"the fake itself failed: {traceback.format_exc()}")

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}{prefix}"

    def stop(self) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
        """Until it holds; it is looked at after each request."""
        with self.changed:
            assert self.changed.wait_for(condition, timeout_s), (self.requests, self.annotations)

    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith("GET")]

    def somebody_saves(self, uid: str, **changes: object) -> None:
        """As a person does in the browser."""
        stored = self.dashboards[uid]
        stored.model |= changes
        stored.history.append({"version": stored.version + 1, "message": "", "createdBy": "anna"})

    # ---- one request

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        raw = handler.rfile.read(length)
        path = urlsplit(handler.path).path
        request = f"{handler.command} {path}"
        with self.changed:
            self.requests.append(request)
            trouble = next((t for t in self.troubles if t.times > 0 and re.search(t.pattern, request)), None)
            if trouble is not None:
                trouble.times -= 1
            if trouble is None or trouble.done:
                status, answer = self._answer(handler, raw)
            self.changed.notify_all()
        if trouble is None:
            self._send(handler, status, json.dumps(answer).encode(), "application/json; charset=UTF-8")
        elif trouble.hang:
            self._released.wait(600)
            handler.close_connection = True
        elif trouble.hang_up:
            handler.close_connection = True
        else:
            self._send(handler, trouble.status, trouble.body, trouble.kind, trouble.headers)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        kind: str,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        with contextlib.suppress(ConnectionError):
            handler.send_response(status)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)

    def _answer(self, handler: BaseHTTPRequestHandler, raw: bytes) -> tuple[int, object]:
        try:
            parts = urlsplit(handler.path)
            if not parts.path.startswith(f"{self.prefix}/api/"):
                return 404, {"message": "Not found"}
            path = parts.path.removeprefix(f"{self.prefix}/api")
            if (handler.command, path) == ("GET", "/health"):
                said = {"version": self.version} if self.version else {}
                return 200, {"commit": "abc", "database": "ok", **said}
            if handler.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise Refusal(401, message="Invalid API key")
            return 200, self._route(handler.command, path, parse_qs(parts.query), handler, raw)
        except Refusal as refusal:
            return refusal.status, refusal.body

    def _route(
        self, method: str, path: str, query: dict[str, list[str]], handler: BaseHTTPRequestHandler, raw: bytes
    ) -> object:
        def body(name: str) -> Document:
            return self._body(name, handler, raw)

        match method, *path.strip("/").split("/"):
            case "GET", "folders", uid:
                return self._folder(uid)
            case "POST", "folders":
                return self._create_folder(body("folder"))
            case "GET", "datasources":
                self._allow(self.may_read_sources, "datasources:read")
                return self.sources
            case "GET", "datasources", "uid" | "name" as key, value:
                self._allow(self.may_read_sources, "datasources:read")
                found = [source for source in self.sources if source[key] == unquote(value)]
                if not found:
                    raise Refusal(404, message="Data source not found")
                return found[0]
            case "GET", "dashboards", "uid", uid:
                return self._dashboard(uid)
            case "GET", "dashboards", "uid", uid, "versions":
                history = self._found(uid).history[::-1][: int(query.get("limit", ["0"])[0]) or None]
                return {"continueToken": "", "versions": history}
            case "POST", "dashboards", "db":
                return self._save(body("dashboard"))
            case "GET", "annotations":
                return self._find(query)
            case "POST", "annotations":
                return self._annotate(body("new annotation"))
            case "PUT", "annotations", number:
                return self._change(int(number), body("annotation"))
        self.violations.append(f"{method} {path} is not documented")
        raise Refusal(404, message="Not found")

    def _body(self, name: str, handler: BaseHTTPRequestHandler, raw: bytes) -> Document:
        kind = handler.headers.get("Content-Type", "")
        if not kind.startswith("application/json"):
            self.violations.append(f"{handler.path}: a body of type {kind}")
        schema = {"type": "object", "additionalProperties": False} | _BODIES[name]
        try:
            body = json.loads(raw)
            jsonschema.validate(body, schema)
        except (ValueError, jsonschema.ValidationError) as error:
            self.violations.append(f"{handler.command} {handler.path}: {error}")
            raise Refusal(400, message="bad request data") from error
        found: Document = body
        return found

    def _allow(self, allowed: bool, permission: str) -> None:
        if not allowed:
            raise Refusal(403, title="Access denied", message=NO_PERMISSION.format(permission))

    # ---- folders and dashboards

    def _folder(self, uid: str) -> Document:
        if uid not in self.folders:
            raise Refusal(404, message="folder not found", status="not-found")
        return self.folders[uid]

    def _create_folder(self, body: Document) -> Document:
        self._allow(self.may_write, "folders:create")
        if any(folder["title"] == body["title"] or folder["uid"] == body["uid"] for folder in self.folders.values()):
            raise Refusal(409, message="a folder with the same name already exists in the current location")
        folder = body | {"id": len(self.folders) + 1, "version": 1, "url": f"{self.prefix}/dashboards/f/{body['uid']}"}
        self.folders[body["uid"]] = folder
        return folder

    def _found(self, uid: str) -> Stored:
        if uid not in self.dashboards:
            raise Refusal(404, message="Dashboard not found", status="not-found")
        return self.dashboards[uid]

    def _dashboard(self, uid: str) -> Document:
        stored = self._found(uid)
        number = [*self.dashboards].index(uid) + 1
        meta = {
            "url": self._url(uid, stored.model["title"]),
            "folderUid": stored.folder,
            "folderTitle": self.folders[stored.folder]["title"] if stored.folder else "",
            "version": stored.version,
            "updated": "2030-01-02T03:04:05Z",
            "updatedBy": stored.history[-1]["createdBy"],
            "provisioned": False,
        }
        return {"dashboard": copy.deepcopy(stored.model) | {"id": number, "version": stored.version}, "meta": meta}

    def _save(self, body: Document) -> Document:
        self._allow(self.may_write, "dashboards:write")
        model, uid = body["dashboard"], body["dashboard"]["uid"]
        folder = body.get("folderUid", "")
        if folder and folder not in self.folders:
            raise Refusal(400, message="folder not found", status="not-found")
        stored = self.dashboards.get(uid)
        if stored is None and model.get("id") is not None:
            raise Refusal(404, message="Dashboard not found", status="not-found")
        if stored is not None and not body.get("overwrite") and model.get("version", 0) != stored.version:
            raise Refusal(412, message="The dashboard has been changed by someone else", status="version-mismatch")
        stored = self.dashboards.setdefault(uid, Stored(model, folder))
        stored.model, stored.folder = {key: model[key] for key in model if key not in ("id", "version")}, folder
        stored.history.append(
            {"version": stored.version + 1, "message": body.get("message", ""), "createdBy": "sa-1-fdmoe"}
        )
        number = [*self.dashboards].index(uid) + 1
        saved = {"id": number, "uid": uid, "url": self._url(uid, model["title"]), "version": stored.version}
        return saved | {"status": "success", "slug": _slug(model["title"])}

    def _url(self, uid: str, title: str) -> str:
        return f"{self.prefix}/d/{uid}/{_slug(title)}"

    # ---- annotations

    def _find(self, query: dict[str, list[str]]) -> list[Document]:
        first, last = int(query["from"][0]), int(query["to"][0])
        wanted = set(query.get("tags", ()))
        found = self.annotations.values()
        return [one for one in found if one["time"] <= last and one["timeEnd"] >= first and wanted <= set(one["tags"])]

    def _annotate(self, body: Document) -> Document:
        self._allow(self.may_write, "annotations:create")
        number = len(self.annotations) + 1
        self.annotations[number] = {"timeEnd": body["time"], **body, "id": number}
        return {"message": "Annotation added", "id": number}

    def _change(self, number: int, body: Document) -> Document:
        self._allow(self.may_write, "annotations:write")
        if number not in self.annotations:
            raise Refusal(404, message="annotation not found")
        self.annotations[number] |= body
        return {"message": "Annotation updated"}


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


@contextlib.contextmanager
def running_grafana(version: str = "11.6.0", prefix: str = "") -> Iterator[FakeGrafana]:
    """One that has seen documented requests only, when it ends."""
    grafana = FakeGrafana(version, prefix)
    try:
        yield grafana
    finally:
        grafana.stop()
    assert grafana.violations == []
