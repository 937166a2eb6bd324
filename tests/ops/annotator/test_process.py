"""The annotator between a watchdog that only listens and a Grafana: it always reads, and ends when it is told to."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_grafana import FakeGrafana, Trouble

from fdmoe_ops import settings as tree
from fdmoe_ops.annotator import __main__ as process
from fdmoe_ops.annotator.__main__ import Annotator
from fdmoe_ops.settings import GrafanaSettings, Settings
from fdmoe_watchdog.channel import Channel
from fdmoe_watchdog.messages import Annotated, Happened
from fdmoe_watchdog.status import Event


class Watchdog:
    """The other end of an annotator's channel. `end` tells it to end and returns its exit code."""

    def __init__(self, settings: GrafanaSettings, room: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(ours)
        self._told, self._tell = socket.socketpair()
        self._codes: list[int] = []
        self.counts = Annotated()
        annotator = Annotator(Channel(theirs), settings, room)
        self._thread = threading.Thread(target=lambda: self._codes.append(annotator.run(self._told)), daemon=True)
        self._thread.start()

    def happens(self, worker: str, number: int) -> None:
        event: Event = {
            "at": f"2030-01-02T12:00:00.{number:03}+00:00", "event": "worker_start", "device": "cpu", "worker": worker,
            "generation": number, "reason": "exit",
        }  # fmt: skip
        self.channel.send(Happened(event))

    def wait_for(self, condition: Callable[[Annotated], bool]) -> None:
        deadline = time.monotonic() + 30
        while not condition(self.counts):
            assert select.select([self.channel], [], [], max(deadline - time.monotonic(), 0))[0], self.counts
            said = self.channel.receive()
            assert isinstance(said, Annotated)
            counts = self.counts
            self.counts = Annotated(counts.sent + said.sent, counts.failed + said.failed, counts.dropped + said.dropped)

    def end(self) -> int:
        self._tell.send(b"\0")
        self._thread.join(30)
        return self._codes[0]


@contextlib.contextmanager
def watchdog(settings: GrafanaSettings, room: int = 8) -> Iterator[Watchdog]:
    watchdog = Watchdog(settings, room)
    try:
        yield watchdog
    finally:
        watchdog.channel.close()


def test_what_happens_is_written_and_counted(grafana: FakeGrafana, settings: GrafanaSettings) -> None:
    with watchdog(settings) as told:
        told.happens("a", 2)
        told.happens("b", 3)
        told.wait_for(lambda counts: counts.sent == 2)
        assert told.end() == 0
    texts = [stored["text"].partition(": ")[2] for stored in grafana.annotations.values()]
    assert texts == [
        "worker a is started again (generation 2): its process ended or was cut off.",
        "worker b is started again (generation 3): its process ended or was cut off.",
    ]


def test_a_grafana_that_hangs_keeps_nobody_waiting(
    grafana: FakeGrafana, settings: GrafanaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    grafana.troubles.append(Trouble("POST", hang=True))
    monkeypatch.setattr(process, "DRAIN_S", 0.1)
    patient = settings.model_copy(update={"timeout_s": 600.0})
    with watchdog(patient, room=8) as told:
        told.happens("a", 0)
        grafana.wait_for(lambda: grafana.requests)
        for number in range(1, 101):
            told.happens("a", number)  # raises if it is not read
        told.wait_for(lambda counts: counts.dropped == 92)
        assert told.counts == Annotated(dropped=92)
        assert told.end() == 0
    assert grafana.annotations == {}


def test_what_waits_at_the_end_is_still_written(
    grafana: FakeGrafana, settings: GrafanaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DRAIN_S", 60.0)
    with watchdog(settings) as told:
        for number in range(5):
            told.happens("a", number)
        assert told.end() == 0
    assert len(grafana.annotations) == 5


def test_without_its_watchdog_it_ends(settings: GrafanaSettings) -> None:
    with watchdog(settings) as told:
        told.channel.close()
        told._thread.join(30)
        assert told._codes == [process.EXIT_FAILED]


def test_nobody_to_connect_to(tmp_path: Path) -> None:
    tree.write(tree.resolve(Settings.model_validate({"run_dir": tmp_path}), ("cpu",)), tmp_path / "settings.json")
    command = (sys.executable, "-P", "-m", "fdmoe_ops.annotator", "--settings", str(tmp_path / "settings.json"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == process.EXIT_FAILED
    assert "no_watchdog" in done.stderr
