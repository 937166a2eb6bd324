"""`fdmoe status` and `fdmoe chaos` against a watchdog that speaks the real protocol from a script of documents."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from typer.testing import CliRunner, Result

from fdmoe_kernels.bench.neighbour import NeighbourError
from fdmoe_ops import client
from fdmoe_ops.chaos import catalogue, neighbours, outside
from fdmoe_ops.chaos.events import new_events
from fdmoe_ops.chaos.target import Target
from fdmoe_ops.chaos.tree import free_port
from fdmoe_ops.cli import app
from fdmoe_watchdog import policy
from fdmoe_watchdog.channel import Channel, ChannelClosed, Listener
from fdmoe_watchdog.messages import (
    ChaosReply,
    ChaosRequest,
    Hello,
    KernelFault,
    LastingFault,
    ProcessFault,
    StatusReply,
    StatusRequest,
)
from fdmoe_watchdog.status import DeviceView, Event, GatewayView, HolderView, TreeView, WorkerView

WORKER = WorkerView(
    name="a",
    device="cpu",
    generation=1,
    pid=4711,
    state="serving",
    path="fused",
    stage="serving",
    outstanding=True,
    heartbeat_age_s=0.0123,
    last_heartbeat_at=0.0,
    stalled_ctas=0,
    slots=16,
    batches={"fused": 120, "baseline": 3},
    weights=1,
    gpu_memory_bytes=612 * 2**20,
)
GONE = msgspec.structs.replace(
    WORKER,
    name="b",
    generation=4,
    pid=0,
    state="gone",
    path="standby",
    stage="none",
    outstanding=False,
    batches={},
    gpu_memory_bytes=None,
)
DEVICE = DeviceView(
    name="cpu",
    path="fused",
    active="a",
    buckets=None,
    restarts_left=9,
    holder=HolderView("weights", 1, 4712, "ready", 3 * 2**20),
)
TREE = TreeView(
    version="0.1.0",
    path="fused",
    chaos=True,
    draining=False,
    uptime_s=3725.4,
    devices=(DEVICE,),
    workers=(WORKER, GONE),
    gateway=GatewayView("http://127.0.0.1:8080", 4710),
    gpus=(),
    events=({"at": "2030-01-02T03:04:05.678+00:00", "event": "route", "worker": "a", "generation": 1},),
    last_flight=None,
)
OUTSIDE = [fault.name for fault in catalogue.FAULTS if fault.means is catalogue.Means.OUTSIDE]
ARMED = ChaosReply(True, "done to a")
ABORTED: Event = {"at": "2030-01-02T03:05:00.000+00:00", "event": "abort_ended", "worker": "a"}
LEFT: Event = {"at": "2030-01-02T03:05:00.001+00:00", "event": "path_switch", "from": "fused", "to": "baseline"}
BACK: Event = {"at": "2030-01-02T03:05:02.000+00:00", "event": "path_switch", "from": "shadow", "to": "fused"}

STAYED = (
    "the path stayed fused for 0.2 s; the fault strikes at the next fused launch, and stays armed until then: "
    "are there requests?"
)
UNREACHABLE = (
    "error: no watchdog listens on {}/watchdog.sock ({}): is `fdmoe serve` running there? "
    "--run-dir or --gateway-port name another tree\n"
)


class ScriptedWatchdog(threading.Thread):
    """Answers each status request with the next document (the last one for ever), each chaos request with `reply`."""

    def __init__(self, run_dir: Path, documents: list[TreeView], reply: ChaosReply, *, silent: bool = False) -> None:
        super().__init__(daemon=True)
        self._listener = Listener(run_dir / "watchdog.sock")
        self._documents, self._reply, self._silent = documents, reply, silent
        self._stopping = threading.Event()
        self.received: list[object] = []

    def run(self) -> None:
        channels: list[Channel] = []
        while not self._stopping.is_set():
            for ready in select.select([self._listener, *channels], [], [], 0.02)[0]:
                if ready is self._listener:
                    channels += [channel] if (channel := self._listener.accept()) else []
                    continue
                try:
                    self._answer(ready, ready.receive())
                except ChannelClosed:
                    channels.remove(ready)
                    ready.close()
        for closing in (*channels, self._listener):
            closing.close()

    def _answer(self, channel: Channel, message: object) -> None:
        self.received.append(message)
        if self._silent:
            return
        match message:
            case StatusRequest():
                document = self._documents.pop(0) if len(self._documents) > 1 else self._documents[0]
                channel.send(StatusReply(document.to_json()))
            case ChaosRequest():
                channel.send(self._reply)

    def stop(self) -> None:
        self._stopping.set()
        self.join(10)


@contextlib.contextmanager
def _watchdog(
    run_dir: Path, *documents: TreeView, reply: ChaosReply = ARMED, silent: bool = False
) -> Iterator[ScriptedWatchdog]:
    watchdog = ScriptedWatchdog(run_dir, list(documents or (TREE,)), reply, silent=silent)
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def _invoke(run_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--run-dir", str(run_dir)])


def _later(path: str, *events: Event) -> TreeView:
    return msgspec.structs.replace(TREE, path=path, events=(*TREE.events, *events))


def test_status_fits_80_columns(tmp_path: Path) -> None:
    with _watchdog(tmp_path) as watchdog:
        result = _invoke(tmp_path, "status")
    assert result.exit_code == 0, result.output
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert lines[:5] == [
        "path     fused",
        "gateway  http://127.0.0.1:8080 (pid 4710)",
        "up for   1 h 2 min 5 s",
        "version  0.1.0",
        "chaos    enabled: kernels may be broken on purpose",
    ]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[6:]]
    assert ["name", "path", "active", "weights", "pid", "MiB", "workers' MiB", "restarts left"] in cells
    assert ["cpu", "fused", "a", "ready", "4712", "3", "612", "9"] in cells
    assert ["name", "state", "path", "stage", "gen.", "pid", "beat age", "fused", "base"] in cells
    assert ["a", "serving", "fused", "serving", "1", "4711", "0.012 s", "120", "3"] in cells
    assert ["b", "gone", "standby", "none", "4", "-", "idle", "-", "-"] in cells
    assert ["03:04:05.678", "route", "worker=a generation=1"] in cells
    assert [type(message) for message in watchdog.received] == [Hello, StatusRequest]


def test_status_while_the_tree_starts(tmp_path: Path) -> None:
    device = msgspec.structs.replace(DEVICE, active=None, holder=HolderView("weights", 1, 0, "backoff", 0))
    starting = msgspec.structs.replace(
        TREE, path="down", chaos=False, draining=True, devices=(device,), workers=(), gateway=GatewayView("", 0),
        events=(), uptime_s=0.2,
    )  # fmt: skip
    with _watchdog(tmp_path, starting):
        lines = _invoke(tmp_path, "status").stdout.splitlines()
    assert {line.rstrip() for line in lines} >= {
        "path      down",
        "gateway   not listening (pid none)",
        "up for    0 s",
        "draining  told to stop: what is in flight is finished",
    }
    assert ["cpu", "down", "none", "backoff", "-", "0", "-", "9"] in [
        re.split(r"\s{2,}", line.strip()) for line in lines
    ]
    assert not any("chaos" in line or "events" in line for line in lines)


def test_the_widest_worker_fits_80_columns(tmp_path: Path) -> None:
    widest = msgspec.structs.replace(
        WORKER,
        generation=1234,
        pid=4194304,  # the highest pid of Linux
        state=max((life.value for life in policy.Life), key=len),
        path="baseline",
        stage="compiling",
        heartbeat_age_s=299.9994,
        batches={"fused": 12_345_678, "baseline": 1_234_567},
    )
    with _watchdog(tmp_path, msgspec.structs.replace(TREE, workers=(widest,))):
        lines = _invoke(tmp_path, "status").stdout.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert ["a", widest.state, "baseline", "compiling", "1234", "4194304", "299.999 s", "12345678", "1234567"] in [
        re.split(r"\s{2,}", line.strip()) for line in lines
    ]


def test_status_as_json_is_the_whole_document(tmp_path: Path) -> None:
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "status", "--json")
    assert json.loads(result.stdout) == json.loads(TREE.to_json())


@pytest.mark.parametrize("command", [("status",), ("chaos", "stall")])
def test_nobody_listens(command: tuple[str, ...], tmp_path: Path) -> None:
    result = _invoke(tmp_path, *command)
    assert result.exit_code == 3
    assert result.stderr == UNREACHABLE.format(tmp_path, "No such file or directory")


def test_a_socket_whose_owner_is_gone(tmp_path: Path) -> None:
    with _watchdog(tmp_path):
        (tmp_path / "kept").hardlink_to(tmp_path / "watchdog.sock")
    (tmp_path / "kept").rename(tmp_path / "watchdog.sock")
    result = _invoke(tmp_path, "status")
    assert result.exit_code == 3
    assert result.stderr == UNREACHABLE.format(tmp_path, "Connection refused")


def test_a_watchdog_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_DEADLINE_S", 0.1)
    with _watchdog(tmp_path, silent=True):
        result = _invoke(tmp_path, "status")
    assert result.exit_code == 3
    assert result.stderr == f"error: the watchdog on {tmp_path}/watchdog.sock gave no answer in 0.1 s\n"


def test_the_run_directory_follows_the_port() -> None:
    result = CliRunner().invoke(app, ["status", "--gateway-port", "1"])
    assert result.exit_code == 3
    assert re.fullmatch(r"error: no watchdog listens on /dev/shm/fdmoe-\d+-1/watchdog.sock .*\n", result.stderr)


@pytest.mark.parametrize("fault", get_args(KernelFault) + get_args(LastingFault) + get_args(ProcessFault))
def test_a_fault_is_injected(fault: str, tmp_path: Path) -> None:
    with _watchdog(tmp_path) as watchdog:
        result = _invoke(tmp_path, "chaos", fault)
    assert (result.exit_code, result.stdout) == (0, f"{fault}: done to a\n")
    assert watchdog.received[-1] == ChaosRequest(fault=fault)  # type: ignore[arg-type]


def test_the_watchdog_can_be_stopped_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = []
    monkeypatch.setattr(outside.os, "kill", lambda pid, number: signals.append((pid, number)))
    monkeypatch.setattr(outside, "STOP_S", 0.01)
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "chaos", "stop-watchdog")
    # here the watchdog is a thread of this process
    assert signals == [(os.getpid(), signal.SIGSTOP), (os.getpid(), signal.SIGCONT)]
    assert result.stdout == f"stop-watchdog: process {os.getpid()} was stopped for 0.01 s\n"


def test_the_watchdog_can_be_killed_and_who_starts_it_again_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = []
    monkeypatch.setattr(outside.os, "kill", lambda pid, number: signals.append((pid, number)))
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "chaos", "kill-watchdog")
    assert signals == [(os.getpid(), signal.SIGKILL)]
    assert result.stdout == (
        f"kill-watchdog: process {os.getpid()} was killed, and its children end with it; whoever started it starts it "
        "again: systemd, the kubelet, or you with `fdmoe serve`\n"
    )


@pytest.mark.parametrize(
    ("pid", "why"),
    [
        (0, "the watchdog's process is none that this one sees; run the command in its PID namespace"),
        (1, "the watchdog is the first process of this PID namespace, which no signal from inside it stops or kills; "
         "send it from the host, or delete the pod"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("fault", ["kill-watchdog", "stop-watchdog"])
def test_a_process_that_no_signal_from_here_can_reach_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, pid: int, why: str
) -> None:
    """The kernel calls one of another namespace 0, and kill(0) is for one's own process group."""
    monkeypatch.setattr(outside.os, "kill", lambda *_: pytest.fail("a signal was sent"))
    monkeypatch.setattr(client.WatchdogClient, "pid", pid)
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "chaos", fault)
    assert (result.exit_code, result.stderr) == (1, f"error: {why}\n")


def test_a_process_of_another_user_cannot_be_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(outside.os, "kill", refuse)
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "chaos", "kill-watchdog")
    words = f"the watchdog's process {os.getpid()} cannot be signalled: [Errno 1] Operation not permitted"
    assert (result.exit_code, result.stderr) == (1, f"error: {words}\n")


def test_neighbours_share_the_device_that_is_served_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work = []

    @contextlib.contextmanager
    def busy_neighbours(device: str, seconds: float) -> Iterator[None]:
        at_work.append((device, seconds))
        yield

    monkeypatch.setattr(neighbours, "busy_neighbours", busy_neighbours)
    monkeypatch.setattr(outside, "NEIGHBOURS_S", 0.01)
    device = msgspec.structs.replace(DEVICE, name="cuda:3")
    with _watchdog(tmp_path, msgspec.structs.replace(TREE, devices=(device, DEVICE))):
        result = _invoke(tmp_path, "chaos", "busy-neighbour")
    assert at_work == [("cuda:3", 0.01)]
    assert (result.exit_code, result.stdout) == (0, "busy-neighbour: cuda:3 was shared for 0.01 s\n")


def test_a_neighbour_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy_neighbours(*_: object) -> None:
        raise NeighbourError("the neighbour ended when it started, with code 1")

    monkeypatch.setattr(neighbours, "busy_neighbours", busy_neighbours)
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "chaos", "busy-neighbour")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: nobody works beside the tree on cpu: the neighbour ended when it started, with code 1\n",
    )


@pytest.mark.parametrize("fault", OUTSIDE)
def test_nothing_is_done_from_outside_to_a_tree_without_chaos(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outside.os, "kill", lambda *_: pytest.fail("a signal was sent"))
    with _watchdog(tmp_path, msgspec.structs.replace(TREE, chaos=False)):
        result = _invoke(tmp_path, "chaos", fault)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the watchdog refused: chaos is off in this tree; start it with --enable-chaos\n"


@pytest.mark.parametrize("fault", OUTSIDE)
def test_nobody_waits_for_a_path_that_stays_or_a_tree_that_ends(fault: str, tmp_path: Path) -> None:
    result = _invoke(tmp_path, "chaos", fault, "--wait", "5")
    reason = "ends the tree, and with it whoever would be asked; `fdmoe status` answers once it was started again"
    if fault != "kill-watchdog":
        reason = "leaves the fused path in service, and ends when it is over"
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: --wait cannot be given: {fault} {reason}\n"


@pytest.mark.parametrize(
    ("ended", "problem"),
    [
        ({"503": 429, "200": 9571}, ""),
        ({"200": 9571, "503": 429, "connections": 744}, ""),
        ({"200": 9999, "silence": 1}, "silence 1"),
        ({"200": 1, "503": 1, "503 without Retry-After": 2}, "503 without Retry-After 2"),
        ({"503": 10_000}, "200 0, where there must be 1 at least"),
    ],
)
def test_how_clients_at_the_door_ended_is_told(
    ended: dict[str, int], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("demo/layers.0", "FP32", 8)
    asked = []
    monkeypatch.setattr(outside.Target, "of_gateway", lambda address: asked.append(address) or target)
    monkeypatch.setitem(outside.VISITS, "flood", lambda *given: asked.append(given) or Counter(ended))
    with _watchdog(tmp_path):
        result = _invoke(tmp_path, "chaos", "flood")
    address = ("127.0.0.1", 8080)
    assert asked == [address, (address, target)]
    assert result.stdout == f"flood: {', '.join(f'{name} {ended[name]}' for name in sorted(ended))}\n"
    assert (result.exit_code, result.stderr) == (
        (1, f"error: no client may end so: {problem}\n") if problem else (0, "")
    )


def test_a_gateway_that_is_not_there_is_said(tmp_path: Path) -> None:
    with _watchdog(tmp_path, msgspec.structs.replace(TREE, gateway=GatewayView("", 0))):
        result = _invoke(tmp_path, "chaos", "half-bodies")
    assert (result.exit_code, result.stderr) == (1, "error: the gateway does not listen now\n")
    url = f"http://127.0.0.1:{free_port()}"
    with _watchdog(tmp_path, msgspec.structs.replace(TREE, gateway=GatewayView(url, 0))):
        result = _invoke(tmp_path, "chaos", "half-bodies")
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: nobody is let in at {url}: the gateway names no layer: [Errno 111] Connection refused\n",
    )


def test_faults_from_outside_do_without_torch_and_numpy() -> None:
    """Those that a shell in a pod sends: an import of torch takes seconds."""
    code = "import sys, fdmoe_ops.cli, fdmoe_ops.chaos.outside; print({'torch', 'numpy', 'triton'} & {*sys.modules})"
    done = subprocess.run((sys.executable, "-P", "-c", code), capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_fault_is_listed_and_has_a_page() -> None:
    result = CliRunner().invoke(app, ["chaos", "list"])
    names = [line.split()[0] for line in result.stdout.splitlines()[3:] if line[:1].isalpha()]
    assert names == [fault.name for fault in catalogue.FAULTS]
    root = Path(__file__).parents[2]
    written = (root / "dashboards/faults.md").read_text()
    assert written == catalogue.page(), "run: python -P -m fdmoe_ops.chaos.catalogue > dashboards/faults.md"
    asked = {fault.name for fault in catalogue.FAULTS if fault.means is catalogue.Means.WATCHDOG}
    assert asked == {*get_args(KernelFault), *get_args(LastingFault), *get_args(ProcessFault)}
    alone = {fault.name for fault in catalogue.FAULTS if fault.means is catalogue.Means.GAME_DAY}
    assert alone == {"failing-worker", "shared-memory-full", "disk-full", "memory-at-warm-up", "wall-clock"}


def test_a_refusal_is_told(tmp_path: Path) -> None:
    with _watchdog(tmp_path, reply=ChaosReply(False, "chaos is off in this tree")):
        result = _invoke(tmp_path, "chaos", "stall")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: the watchdog refused: chaos is off in this tree\n"


def test_an_unknown_fault(tmp_path: Path) -> None:
    result = _invoke(tmp_path, "chaos", "wall-clock")
    assert result.exit_code == 2
    assert "No such command 'wall-clock'" in " ".join(result.stderr.replace("│", " ").split())


def test_waiting_shows_each_event_once_until_fused_is_back(tmp_path: Path) -> None:
    documents = [
        TREE,
        TREE,
        _later("baseline", ABORTED, LEFT),
        _later("shadow", ABORTED, LEFT),
        _later("fused", ABORTED, LEFT, BACK),
    ]
    with _watchdog(tmp_path, *documents):
        result = _invoke(tmp_path, "chaos", "stall", "--wait", "30")
    assert result.exit_code == 0, result.output
    *lines, last = result.stdout.splitlines()
    assert lines == [
        "stall: done to a",
        "03:05:00.000  abort_ended  worker=a",
        "03:05:00.001  path_switch  from=fused to=baseline",
        "03:05:02.000  path_switch  from=shadow to=fused",
    ]
    assert re.fullmatch(r"fused again, \d+\.\d s after the fault was armed", last)


def test_a_return_between_two_readings_counts(tmp_path: Path) -> None:
    with _watchdog(tmp_path, TREE, _later("fused", LEFT, BACK)):
        result = _invoke(tmp_path, "chaos", "stall", "--wait", "30")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (_later("baseline", LEFT), "the path is not fused again after 0.2 s"),
        (
            TREE,
            STAYED,
        ),
    ],
)
def test_waiting_ends(document: TreeView, message: str, tmp_path: Path) -> None:
    with _watchdog(tmp_path, TREE, document):
        result = _invoke(tmp_path, "chaos", "endless", "--wait", "0.2")
    assert (result.exit_code, result.stderr) == (1, f"error: {message}\n")


@pytest.mark.parametrize(
    ("seen", "events", "new"),
    [
        ([], [], []),
        ([], [1], [1]),
        ([1], [1], []),
        ([1, 2], [1, 2, 3], [3]),
        ([1, 2, 3], [2, 3, 4], [4]),  # the log keeps three
        ([1, 2, 3], [4, 5, 6], [4, 5, 6]),
        ([1, 1], [1, 1, 1], [1]),
    ],
)
def test_new_events(seen: list[int], events: list[int], new: list[int]) -> None:
    def log(numbers: list[int]) -> list[dict[str, object]]:
        return [{"at": "2030-01-01T00:00:00Z", "event": "beat", "number": number} for number in numbers]

    assert new_events(log(seen), log(events)) == log(new)
