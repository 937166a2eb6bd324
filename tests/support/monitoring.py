"""A real Prometheus and a real Alertmanager on loopback, and a receiver that takes what they send.

The rules run as they are written but for their times: every duration in them is divided by the same factor, as if the
clock of scrapes, windows and `for:` went faster. `promtool test rules` tests the times themselves.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fdmoe_ops.chaos.tree import free_port

MISSING = [name for name in ("prometheus", "prometheus-alertmanager") if shutil.which(name) is None]
SCRAPE_S = 0.5
_RULES = Path(__file__).parents[2] / "dashboards" / "rules"
_UNITS_S = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_DURATION = re.compile(r"(\d+)(ms|[smhdw])")
# ranges and subqueries: [5m], [1h:1m]; offsets
_IN_EXPRESSIONS = re.compile(r"(?<=\[)[0-9a-z:]+(?=\])|(?<=offset )[0-9a-z]+")
T = TypeVar("T")


def faster(duration: str, factor: float) -> str:
    """A Prometheus duration divided by `factor`, in milliseconds, and a scrape and a half at least."""
    parts = duration.split(":")
    scaled = []
    for part in parts:
        seconds = sum(int(number) * _UNITS_S[unit] for number, unit in _DURATION.findall(part))
        scaled.append(f"{max(seconds / factor, 3 * SCRAPE_S) * 1000:.0f}ms" if part else "")
    return ":".join(scaled)


def faster_rules(rules: dict[str, Any], factor: float, others: dict[str, float]) -> dict[str, Any]:
    """The same groups of rules, with every duration in them divided by `factor`, or by an alert's own in `others`."""
    groups = []
    for group in rules["groups"]:
        changed = []
        for rule in group["rules"]:
            own = others.get(rule.get("alert", ""), factor)
            rule = {**rule, "expr": faster_expression(rule["expr"], own)}
            for key in ("for", "keep_firing_for"):
                if key in rule:
                    rule[key] = faster(rule[key], own)
            changed.append(rule)
        groups.append({"name": group["name"], "rules": changed})
    return {"groups": groups}


def faster_expression(expression: str, factor: float) -> str:
    return _IN_EXPRESSIONS.sub(lambda found: faster(found[0], factor), expression)


@dataclass(frozen=True)
class Notice:
    """One alert as the receiver got it; `began`: Unix time since when it fires."""

    name: str
    status: str
    began: float
    labels: dict[str, str]
    annotations: dict[str, str]


class Receiver:
    """What Alertmanager's webhook brings, in order."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in document["alerts"]:
                    labels = dict(alert["labels"])
                    name = labels.pop("alertname")
                    began = datetime.fromisoformat(alert["startsAt"]).timestamp()
                    receiver.notices.append(Notice(name, alert["status"], began, labels, alert["annotations"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass
class Monitoring:
    """Prometheus at `port`, and what it says. Times are seconds of its own clock."""

    port: int
    receiver: Receiver
    logs: list[Path] = field(default_factory=list)

    def ask(self, path: str, **parameters: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
            answer = json.load(connection.getresponse())
        finally:
            connection.close()
        assert answer["status"] == "success", f"{path} {parameters}: {answer}"
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def query_range(self, expression: str, seconds: float) -> list[dict[str, Any]]:
        now = time.time()
        found: list[dict[str, Any]] = self.ask(
            "query_range",
            query=expression,
            start=f"{now - seconds:.3f}",
            end=f"{now:.3f}",
            step=f"{SCRAPE_S * 1000:.0f}ms",
        )["result"]
        return found

    def received(self, name: str) -> list[Notice]:
        return [notice for notice in self.receiver.notices if notice.name == name]

    def wait_until(self, what: str, condition: Callable[[], T], timeout_s: float = 60.0) -> T:
        deadline, pause = time.monotonic() + timeout_s, threading.Event()
        while not (found := condition()):
            assert time.monotonic() < deadline, f"{what} did not come in {timeout_s:g} s; {self._state()}"
            pause.wait(0.1)
        return found

    def _state(self) -> str:
        return f"alerts: {self.ask('alerts')['alerts']}; received: {self.receiver.notices[-10:]}"


def name_targets(path: Path, targets: list[str]) -> None:
    """At once, for who watches the file."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps([{"targets": targets}]))
    new.replace(path)


def load_rules(factor: float, others: dict[str, float] | None = None) -> dict[str, Any]:
    """All our rules, that much faster."""
    groups = []
    for name in ("recordings", "alerts"):
        rules = yaml.safe_load((_RULES / f"{name}.yaml").read_text())
        groups += faster_rules(rules, factor, others or {})["groups"]
    return {"groups": groups}


@contextlib.contextmanager
def monitoring(directory: Path, targets: list[str] | Path, rules: dict[str, Any]) -> Iterator[Monitoring]:
    """Both programs, scraping `targets` (HOST:PORT) as the job fdmoe every half second, until the block is left.

    Targets that come and go are in a file of Prometheus' discovery: `name_targets` writes it.
    """
    found = (
        {"file_sd_configs": [{"files": [str(targets)], "refresh_interval": "1s"}]}
        if isinstance(targets, Path)
        else {"static_configs": [{"targets": targets}]}
    )
    receiver = Receiver()
    prometheus, alertmanager = free_port(), free_port()
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
    (directory / "alertmanager.yaml").write_text(
        yaml.safe_dump(
            {
                "route": {
                    "receiver": "tests", "group_by": ["..."], "group_wait": "0s", "group_interval": "1s",
                    "repeat_interval": "1h",
                },
                "receivers": [
                    {"name": "tests", "webhook_configs": [{"url": receiver.url, "send_resolved": True}]},
                ],
            }
        )
    )  # fmt: skip
    (directory / "prometheus.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "450ms"},
                "rule_files": [str(directory / "rules.yaml")],
                "alerting": {
                    "alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}],
                },
                "scrape_configs": [{"job_name": "fdmoe", **found}],
            }
        )
    )
    commands = {
        "alertmanager": (
            "prometheus-alertmanager", f"--config.file={directory / 'alertmanager.yaml'}",
            f"--storage.path={directory / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{alertmanager}",
            "--cluster.listen-address=",
        ),
        "prometheus": (
            "prometheus", f"--config.file={directory / 'prometheus.yaml'}",
            f"--storage.tsdb.path={directory / 'prometheus'}", f"--web.listen-address=127.0.0.1:{prometheus}",
            "--storage.tsdb.min-block-duration=2h",
        ),
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.callback(receiver.close)
        logs = [directory / f"{name}.log" for name in commands]
        for (name, command), log in zip(commands.items(), logs, strict=True):
            process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)
            stack.callback(_end, process)
            port = prometheus if name == "prometheus" else alertmanager
            _wait_until_ready(process, port, log)
        yield Monitoring(prometheus, receiver, logs)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline, pause = time.monotonic() + 60, threading.Event()
    while True:
        assert process.poll() is None, f"it ended with {process.returncode}: {log.read_text()[-2000:]}"
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/-/ready")
            if connection.getresponse().status == 200:
                return
        assert time.monotonic() < deadline, f"it is not ready: {log.read_text()[-2000:]}"
        pause.wait(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
