"""Alerts of a real tree, from its metrics through Prometheus and Alertmanager to a receiver, and panels that show it.

The rules run sixty times faster than they are written: five minutes of the baseline take five seconds. What a fault
does in real time, tests/tree/test_game_day.py says of each; here things last, which is what alerts are about.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dashboard_queries import panel_queries
from monitoring import MISSING, Monitoring, Notice, faster_expression, load_rules, monitoring

from fdmoe_ops.chaos.load import Load, Pool
from fdmoe_ops.chaos.tree import Tree, running_tree
from fdmoe_ops.checkpoint import Checkpoint
from fdmoe_ops.demo import write_demo_model
from fdmoe_watchdog.probe.recorded import H200

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} not installed (README: Start)")

FACTOR = 60.0
# a process takes seconds to start, however fast the clock goes; and a mismatch need not be remembered for 15 s here
OTHER_FACTORS = {"FdmoeRestartLoop": 12.0, "FdmoeShadowMismatch": 180.0}
UNEVEN = "FdmoeExpertImbalance"
# What may come beside what a fault raises: the interpreter is slower than the objective of 0.25 s as soon as a few
# clients wait for it, and seconds that a slow machine takes to come back, or holds up the watchdog, are minutes here.
# The 503s of the flood, and of a tree that drains, stay in the budget's long windows.
MAY_COME = {
    UNEVEN, "FdmoeLatencyBurn", "FdmoeAvailabilityBurn", "FdmoeOnBaseline", "FdmoeNoStandby", "FdmoeWatchdogLagging",
}  # fmt: skip


@dataclass(frozen=True)
class Live:
    """The tree, its recording of a GPU, and what watches it; `began` is Unix time. Two clients send all the time."""

    tree: Tree
    recording: Path
    monitoring: Monitoring
    pool: Pool
    began: float

    def arrives(
        self,
        *names: str,
        do: Callable[[], None] | None = None,
        may_come: tuple[str, ...] = (),
        timeout_s: float = 60.0,
    ) -> list[Notice]:
        """Do something, and wait until these alerts have come, and no other. What came, in order."""
        notices = self.monitoring.receiver.notices
        mark = len(notices)
        if do is not None:
            do()

        def came() -> set[str]:
            return {notice.name for notice in notices[mark:] if notice.status == "firing"}

        self.monitoring.wait_until(f"{' and '.join(names)}", lambda: set(names) <= came(), timeout_s)
        assert came() <= {*names, *MAY_COME, *may_come}
        return [notice for notice in notices[mark:] if notice.name in names]

    def goes(self, *names: str, timeout_s: float = 60.0) -> None:
        """Wait until none of these alerts fires, and the receiver has been told."""

        def last(name: str) -> str:
            told = [notice.status for notice in self.monitoring.receiver.notices if notice.name == name]
            return told[-1]

        self.monitoring.wait_until(
            f"the end of {' and '.join(names)}", lambda: all(last(name) == "resolved" for name in names), timeout_s
        )

    def record(self, **figures: Any) -> None:
        """The probe reads so from its next start on."""
        write_recording(self.recording, **figures)

    def play(self, fault: str) -> None:
        self.tree.wait_until(f"a chance for {fault}", lambda: self._armed(fault))

    def _armed(self, fault: str) -> bool:
        with contextlib.suppress(AssertionError):
            self.tree.arm(fault)
            return True
        return False

    def whole(self) -> None:
        """All is as it should be again."""

        def found() -> bool:
            status = self.tree.status()
            return status["path"] == "fused" and {worker["state"] for worker in status["workers"]} == {"ready"}

        self.tree.wait_until("a whole tree", found)


def write_recording(path: Path, xid: int | None = None, **figures: Any) -> None:
    step = {"after_s": 0.0, "state": "made up", "origin": "chosen", "figures": _figures() | figures}
    xids = [{"after_s": 0.5, "xid": xid}] if xid else []
    path.write_text(json.dumps({"format": 1, "origin": "chosen", "length_s": 3600.0, "steps": [step], "xids": xids}))


def _figures() -> dict[str, Any]:
    """A GPU at work, with a reason for its clocks to be held down, and what the shipped recording leaves out."""
    steps = json.loads(H200.read_text())["steps"]
    figures: dict[str, Any] = next(step["figures"] for step in steps if step["state"] == "working")
    traffic = {
        f"{link}_{direction}_bytes_per_s": 1e9
        for link in ("pcie", "nvlink")
        for direction in ("received", "transmitted")
    }
    more = {"memory_clock_hertz": 3.2e9, "nvlink_received_bytes": 10**9, "nvlink_transmitted_bytes": 10**9}
    return figures | traffic | more | {"throttle_mask": 4, "throttle_reasons": ["sw_power_cap"]}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    directory = tmp_path_factory.mktemp("live")
    demo = directory / "demo"
    write_demo_model(demo)
    recording = directory / "recording.json"
    flags = (
        f"--model-path={demo}", "--model-name=demo", "--model-layers=1", "--enable-chaos",
        f"--watchdog-gpu-recording={recording}", "--watchdog-gpu-interval-s=0.5", "--watchdog-gpu-deadline-s=3",
        "--gateway-max-queue-requests=8", "--recovery-cooldown-initial-s=0.2", "--recovery-cooldown-max-s=0.2",
        # a stall that lasts
        "--recovery-stall-floor-s=6", "--recovery-stall-ceiling-s=8",
        "--recovery-backoff-initial-s=0.05", "--recovery-backoff-max-s=0.1", "--recovery-restart-budget=7",
        "--gateway-drain-timeout-s=1",
    )  # fmt: skip
    layer = Checkpoint.open(demo).load(1, device="cpu", dtype=torch.float32)
    pool = _one_token_again_and_again(Pool.of("demo/layers.1", layer, 40))
    began = time.time()
    write_recording(recording)
    with running_tree(*flags) as tree:
        targets = [tree.gateway_address, f"127.0.0.1:{tree.watchdog_port}"]
        with (
            monitoring(directory, targets, load_rules(FACTOR, OTHER_FACTORS)) as watch,
            Load(tree.gateway_address, pool, 2),
        ):
            yield Live(tree, recording, watch, pool, began)


def _one_token_again_and_again(pool: Pool) -> Pool:
    """The same rows in every request: they all go to the same experts."""
    largest = max(range(len(pool.inputs)), key=lambda index: len(pool.inputs[index]))
    rows, row_bytes = len(pool.inputs[largest]) // 256, 256
    one = pool.inputs[largest][:row_bytes] * rows
    expected = pool.expected[largest][:1].expand(rows, -1).contiguous()
    return replace(pool, inputs=(one,), expected=(expected,))


def test_in_fair_weather_nothing_fires(live: Live) -> None:
    watch = live.monitoring
    watch.wait_until("both targets", lambda: [found["value"][1] for found in watch.query("up")] == ["1", "1"])
    watch.wait_until("answers", lambda: watch.query("sum(fdmoe_request_duration_seconds_count) > 50"))
    assert {notice.name for notice in watch.receiver.notices} <= MAY_COME
    rules = [rule for group in watch.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [rule for rule in rules if rule["health"] != "ok"]


def test_a_wrong_tile(live: Live) -> None:
    found = live.arrives("FdmoeShadowMismatch", do=lambda: live.play("nan"))
    instance = f"127.0.0.1:{live.tree.watchdog_port}"
    assert found[0].labels == {"severity": "critical", "job": "fdmoe", "instance": instance}
    assert found[0].annotations == {
        "summary": f"The fused path of {instance} computed something else than the baseline",
        "description": "A comparison in the last 15 minutes found another output than the baseline's. The fused path "
        "was taken out of service. Where it was serving, earlier answers that were not compared may be wrong too.",
        "runbook_url": "dashboards/runbooks/shadow-mismatch.md",
    }
    live.goes("FdmoeShadowMismatch")
    live.whole()


def test_a_launch_that_spins_for_long(live: Live) -> None:
    live.record(utilization=1.0, sm_activity=0.97, tensor_activity=0.0, dram_bandwidth=0.0)
    live.play("kill-probe")
    watch = live.monitoring
    watch.wait_until("the readings", lambda: watch.query("max(fdmoe_gpu_tensor_activity_ratio) == 0"))
    found = live.arrives("FdmoeHeartbeatStale", "FdmoeBusyWithoutProgress", do=lambda: live.play("stall"))
    assert {notice.labels.get("device") for notice in found} == {"cpu"}
    live.goes("FdmoeHeartbeatStale", "FdmoeBusyWithoutProgress")
    live.record()
    live.play("kill-probe")
    live.whole()


def test_more_requests_than_can_be_done(live: Live) -> None:
    with Load(live.tree.gateway_address, live.pool, 40):
        # what is turned away is a 503, and the budget for those is small
        # forty clients leave a scrape little time
        live.arrives("FdmoeQueueSaturated", "FdmoeAvailabilityBurn", may_come=("FdmoeTargetDown",))
    live.goes("FdmoeQueueSaturated", "FdmoeAvailabilityBurn")


def test_a_watchdog_that_stands_still(live: Live) -> None:
    live.tree.process.send_signal(signal.SIGSTOP)
    try:
        found = live.arrives("FdmoeTargetDown")
    finally:
        live.tree.process.send_signal(signal.SIGCONT)
    assert [notice.labels["instance"] for notice in found] == [f"127.0.0.1:{live.tree.watchdog_port}"]
    live.goes("FdmoeTargetDown")
    live.whole()


def test_a_watchdog_that_is_late_and_a_gpu_that_cannot_be_read(live: Live) -> None:
    live.recording.write_text("torn")
    live.play("kill-probe")
    done = threading.Event()

    def hold_up() -> None:
        while not done.wait(0.3):
            os.kill(live.tree.process.pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(live.tree.process.pid, signal.SIGCONT)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        live.arrives("FdmoeWatchdogLagging", "FdmoeCollectorStale")
    finally:
        done.set()
        thread.join()
    live.record()
    live.play("kill-probe")
    live.goes("FdmoeWatchdogLagging", "FdmoeCollectorStale")
    live.whole()


def test_both_workers_are_gone(live: Live) -> None:
    found = live.arrives("FdmoeNotServing", do=lambda: live.play("kill-workers"))
    assert found[0].labels["device"] == "cpu"
    live.goes("FdmoeNotServing")
    live.whole()


def test_a_worker_that_fails_at_each_start(live: Live) -> None:
    for manifest in live.tree.run_dir.glob("weights*.json"):
        manifest.unlink()
    names = ("FdmoeRestartLoop", "FdmoeRecoveryFailed", "FdmoeOnBaseline", "FdmoeNoStandby")
    found = live.arrives(*names, do=lambda: live.play("kill-standby"), timeout_s=120)
    assert {notice.labels["rung"] for notice in found if notice.name == "FdmoeRecoveryFailed"} == {"restart"}


def test_tokens_that_all_go_to_the_same_experts(live: Live) -> None:
    assert {notice.labels["layer"] for notice in live.monitoring.received(UNEVEN)} == {"demo/layers.1"}


def test_a_gpu_that_must_be_reset(live: Live) -> None:
    live.record(recovery_action="reset_gpu", xid=79)
    names = ("FdmoeXidCritical", "FdmoeRecoveryActionNeeded", "FdmoeRecoveryFailed", "FdmoeTargetDown")
    # the tree is out, and says why for a while: the gateway is gone at once
    found = live.arrives(*names, "FdmoeNotServing", do=lambda: live.play("kill-probe"))
    labels = {notice.name: notice.labels for notice in found}
    assert labels["FdmoeXidCritical"]["xid"] == "79"
    assert labels["FdmoeRecoveryActionNeeded"]["action"] == "reset_gpu"
    assert labels["FdmoeRecoveryFailed"]["rung"] == "give_up"
    assert labels["FdmoeTargetDown"]["instance"] == live.tree.gateway_address


def test_every_panel_has_shown_something(live: Live) -> None:
    empty = [
        f"{query.dashboard}, {query.panel}, {query.query}: {query.expression}"
        for query in panel_queries()
        if not live.monitoring.query_range(faster_expression(query.expression, FACTOR), time.time() - live.began)
    ]
    assert not empty, "\n".join(empty)


def test_a_tree_that_is_gone(live: Live) -> None:
    assert live.tree.stop() == 71
    live.arrives("FdmoeTargetMissing", "FdmoeTargetDown")
    live.monitoring.wait_until(
        "both of them", lambda: {"watchdog", "gateway"} == _targets(live.monitoring.received("FdmoeTargetMissing"))
    )


def _targets(notices: list[Notice]) -> set[str]:
    return {notice.labels["target"] for notice in notices}
