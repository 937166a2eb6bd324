"""Annotations on their way into a Grafana that is there, away, slow to say so, or unwilling."""

from __future__ import annotations

import socket

import pytest
import structlog
from fake_grafana import TOKEN, FakeGrafana, Trouble

from fdmoe_ops.annotator.chronicle import Annotation
from fdmoe_ops.annotator.outbox import Outbox
from fdmoe_ops.annotator.writer import PATIENCE_S, Writer
from fdmoe_ops.grafana.api import Grafana
from fdmoe_ops.grafana.token import read_token
from fdmoe_ops.settings import GrafanaSettings
from fdmoe_watchdog.messages import Annotated

NOON_MS = 1_893_585_600_000
TAGS = ("fdmoe", "host:n", "device:cuda:0", "event:path_switch", "reason:stall")
LEFT = Annotation(1, NOON_MS, None, TAGS, "the baseline serves")
BACK = Annotation(1, NOON_MS, NOON_MS + 3500, TAGS, "the baseline serves\nthe fused path serves again")
SENT, FAILED = Annotated(sent=1), Annotated(failed=1)
AWAY = Trouble("/api/annotations", 503, b'{"message": "away"}')


class Desk:
    """A writer, the time that it sees, and what it reported."""

    def __init__(self, settings: GrafanaSettings) -> None:
        self.now = 0.0
        self.pauses: list[float] = []
        self.reports: list[Annotated] = []
        self.writer = Writer(
            lambda: Grafana(settings, read_token(settings)),
            self.reports.append,
            clock=lambda: self.now,
            pause=self._pause,
        )

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def write(self, *annotations: Annotation) -> list[Annotated]:
        """One after the other, and what became of them."""
        self.reports.clear()
        for annotation in annotations:
            outbox = Outbox(1)
            outbox.put(annotation)
            outbox.close()
            self.writer.run(outbox)
        return self.reports


@pytest.fixture
def desk(settings: GrafanaSettings) -> Desk:
    return Desk(settings)


def test_a_region_begins_as_a_moment_and_ends_when_it_is_over(desk: Desk, grafana: FakeGrafana) -> None:
    assert desk.write(LEFT) == [SENT]
    (stored,) = grafana.annotations.values()
    assert (stored["time"], stored["timeEnd"], stored["text"]) == (NOON_MS, NOON_MS, LEFT.text)
    assert tuple(stored["tags"]) == TAGS
    assert desk.write(BACK) == [SENT]
    assert list(grafana.annotations) == [1]
    stored = grafana.annotations[1]
    assert (stored["time"], stored["timeEnd"], stored["text"]) == (NOON_MS, NOON_MS + 3500, BACK.text)
    assert tuple(stored["tags"]) == TAGS
    assert grafana.requests == ["POST /api/annotations", "PUT /api/annotations/1"]


def test_one_that_somebody_has_removed_is_written_anew(desk: Desk, grafana: FakeGrafana) -> None:
    desk.write(LEFT)
    grafana.troubles.append(Trouble("PUT", 404, b'{"message": "annotation not found"}', times=1))
    assert desk.write(BACK) == [SENT]
    assert grafana.annotations[2]["timeEnd"] == NOON_MS + 3500


def test_a_grafana_that_comes_back_has_lost_nothing(desk: Desk, grafana: FakeGrafana) -> None:
    grafana.troubles.append(Trouble("/api/annotations", 503, b"{}", times=5))
    other = Annotation(2, NOON_MS + 50, None, TAGS, "other")
    with structlog.testing.capture_logs() as logs:
        assert desk.write(LEFT, other) == [SENT, SENT]
    assert [stored["text"] for stored in grafana.annotations.values()] == [LEFT.text, "other"]
    assert desk.pauses == [0.25, 0.5, 1, 2, 4]
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("grafana_lost", "warning"),
        ("grafana_back", "info"),
    ]
    assert logs[0]["reason"] == f"Grafana at {grafana.url} could not write an annotation (503)"


def test_an_answer_that_is_lost_does_not_write_it_twice(desk: Desk, grafana: FakeGrafana) -> None:
    grafana.troubles.append(Trouble("POST /api/annotations", 504, b"{}", times=1, done=True))
    assert desk.write(LEFT, BACK) == [SENT, SENT]
    assert list(grafana.annotations) == [1]
    assert grafana.annotations[1]["text"] == BACK.text


def test_one_that_looks_like_it_and_is_another(desk: Desk, grafana: FakeGrafana) -> None:
    grafana.annotations[1] = {"id": 1, "time": NOON_MS, "timeEnd": NOON_MS, "tags": [*TAGS], "text": "another"}
    grafana.troubles.append(Trouble("POST /api/annotations", 503, b"{}", times=1))
    assert desk.write(LEFT) == [SENT]
    assert [stored["text"] for stored in grafana.annotations.values()] == ["another", LEFT.text]


def test_patience_has_an_end_and_an_outage_one_line(desk: Desk, grafana: FakeGrafana) -> None:
    grafana.troubles.append(AWAY)
    with structlog.testing.capture_logs() as logs:
        assert desk.write(LEFT, LEFT, LEFT) == [FAILED, FAILED, FAILED]
        grafana.troubles.clear()
        assert desk.write(LEFT) == [SENT]
    assert PATIENCE_S - 8 < desk.now / 3 <= PATIENCE_S
    assert [line["event"] for line in logs] == ["grafana_lost", "grafana_back"]
    assert logs[1]["failed"] == 3


def test_a_refusal_is_not_tried_again(desk: Desk, grafana: FakeGrafana) -> None:
    grafana.may_write = False
    with structlog.testing.capture_logs() as logs:
        assert desk.write(LEFT, LEFT) == [FAILED, FAILED]
    assert desk.pauses == []
    (line,) = logs
    assert line["reason"].endswith("the token's service account needs annotations:create")


def test_a_token_that_has_been_changed_is_read_anew(desk: Desk, settings: GrafanaSettings) -> None:
    assert settings.token_file is not None
    settings.token_file.write_text("an old one")
    assert desk.write(LEFT) == [FAILED]
    settings.token_file.unlink()
    assert desk.write(LEFT) == [FAILED]
    settings.token_file.write_text(TOKEN)
    assert desk.write(LEFT) == [SENT]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"message": "Annotation added"}', b"\xff"])
def test_an_answer_that_is_none_of_grafanas(desk: Desk, grafana: FakeGrafana, body: bytes) -> None:
    grafana.troubles.append(Trouble("POST /api/annotations", 200, body, times=1))
    assert desk.write(LEFT) == [FAILED]


def test_nobody_listens(settings: GrafanaSettings) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        desk = Desk(settings.model_copy(update={"url": f"http://127.0.0.1:{unused.getsockname()[1]}"}))
        assert desk.write(LEFT) == [FAILED]
    assert desk.now > PATIENCE_S - 8


def test_only_so_many_are_remembered(desk: Desk, grafana: FakeGrafana) -> None:
    desk.write(*(Annotation(key, NOON_MS + key, None, TAGS, "text") for key in range(1, 259)))
    assert len(desk.writer._ids) == 256
    assert len(grafana.annotations) == 258
