"""Every fault that can be injected: what it is, what the service does about it, what an operator sees and should do.

dashboards/faults.md is made from it (`python -P -m fdmoe_ops.chaos.catalogue`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Place(Enum):
    KERNEL = "In the kernel"
    TREE = "In the process tree"
    SURROUNDINGS = "In the surroundings"
    DOOR = "At the door"


class Means(Enum):
    """How it is injected."""

    WATCHDOG = "asked of the watchdog of a running tree"
    OUTSIDE = "done to a running tree from outside"
    GAME_DAY = "by a game day alone, in a tree of its own"


@dataclass(frozen=True)
class FaultInfo:
    """`what` is the fault, `follows` what the service does, `seen` what shows it, `todo` what is left for people."""

    name: str
    place: Place
    means: Means
    what: str
    follows: str
    seen: str
    todo: str


_RESTARTED = "worker_gone and worker_start in the events, fdmoe_worker_restarts_total"
_NOTHING = "Nothing."
_KILLED = "Look [who killed it](#who-killed-it)."
_STOPPED = "Look who stops processes: a debugger, a cgroup that is frozen."
_LOOK = "Nothing for one; look into the flight records if it comes again."

FAULTS: tuple[FaultInfo, ...] = (
    FaultInfo(
        "stall", Place.KERNEL, Means.WATCHDOG,
        "One up tile never signals that it is done: all that need it wait for ever.",
        "The silence is seen, the launch is aborted and ends by itself; the same worker answers from its baseline. The "
        "fused path comes back by way of the shadow.",
        "stall and abort_ended in the events, a flight record, fdmoe_stalls_total{cause=\"stall\"}.",
        _LOOK,
    ),
    FaultInfo(
        "endless", Place.KERNEL, Means.WATCHDOG,
        "One up tile never ends, and never looks at the abort word.",
        "The abort does not end it in time: the worker is fenced, its batch goes to the standby, the process is killed "
        "and started again.",
        "abort_timed_out, fence, route, kill; fdmoe_aborts_total{result=\"timed_out\"}.",
        _LOOK,
    ),
    FaultInfo(
        "illegal", Place.KERNEL, Means.WATCHDOG,
        "One tile stores to an address that nobody has. On a GPU the context is lost; on the CPU the process ends.",
        "The worker says so or ends; its batch goes to the standby, and it is started again.",
        "stall, where the launch falls silent before anybody says why, or fence with cause exit, or worker_failed with "
        f"the driver's words; {_RESTARTED}.",
        "On a GPU look for Xid 13 or 31 in the kernel's log: they name the process, and need no reset.",
    ),
    FaultInfo(
        "nan", Place.KERNEL, Means.WATCHDOG,
        "One tile of the output is NaN.",
        "No answer that is not finite leaves before the baseline has given the same: the baseline's is sent, and the "
        "fused path is taken out of service.",
        "shadow_mismatch in the events, fdmoe_shadow_checks_total{result=\"mismatch\"}.",
        "If it comes again, keep the baseline and send the requests that the events name to the maintainers.",
    ),
    FaultInfo(
        "wrong", Place.KERNEL, Means.WATCHDOG,
        "One tile of the output is finite and wrong, in one launch.",
        "Only a comparison can find it: one batch in 1 / recovery.compare_ratio, and at least one in "
        "recovery.compare_interval_s. A batch that is not compared is answered wrong; with "
        "recovery.compare_before_answer none is.",
        "shadow_mismatch, if the launch was one of those that are compared.",
        "A GPU that computes wrong numbers stays wrong: compare more (recovery.compare_ratio), look at its ECC counts.",
    ),
    FaultInfo(
        "corrupt", Place.KERNEL, Means.WATCHDOG,
        "One tile of the output is finite and wrong in every launch from now on, twice as many as one in "
        "recovery.compare_ratio can miss: what a GPU does that computes wrong numbers.",
        "The first batch that is compared finds it: the baseline serves. Until then batches are answered wrong. The "
        "fused path comes back by way of the shadow, and fails there for as long as it is wrong.",
        "shadow_mismatch with the requests that were answered wrong; "
        "fdmoe_shadow_checks_total{result=\"mismatch\"}; FdmoeShadowMismatch.",
        "Compare more (recovery.compare_ratio) to find it sooner; look at the GPU's ECC counts and take it out.",
    ),
    FaultInfo(
        "slow", Place.KERNEL, Means.WATCHDOG,
        "Every tile takes about ten times as long, and beats all the same; seven launches for each that must say so.",
        "Nothing is ended, for it makes progress. After some batches in a row that took recovery.slow_factor times "
        "their usual, the next ones run on the baseline, too. recovery.slow_checks in a row that lost as much against "
        "the baseline, and take half as long again as it, make the fused path slow: the baseline serves, and the fused "
        "path comes back by way of the shadow, where a bucket must be right and in time. What makes both paths slow, "
        "such as a neighbour or a throttled GPU, is no reason, and the row is judged again while it lasts. A worker "
        "learns what is usual from its own batches, six of a bucket at least: a kernel that is slow from its first "
        "launch on is not found.",
        "slow in the events, or slow_excused, with the times of both paths now and before; "
        "fdmoe_path_switches_total{reason=\"slow\"}.",
        "Nothing for one. If it comes again, look at clocks and power (fdmoe_gpu_throttled), and keep the baseline.",
    ),
    FaultInfo(
        "kill-active", Place.TREE, Means.WATCHDOG,
        "The active worker is killed.",
        "Its batch goes to the standby at once; a new worker becomes the standby.",
        f"fence with cause exit; {_RESTARTED}.",
        _KILLED,
    ),
    FaultInfo(
        "stop-active", Place.TREE, Means.WATCHDOG,
        "The active worker is stopped (SIGSTOP): it lives and does nothing.",
        "It shows no sign of work, and the kernel of the system says that a signal holds it: after "
        "recovery.stopped_deadline_s its batch is taken away: fence, replay, kill, restart.",
        "stall with cause frozen, a flight record with the process's state.",
        _STOPPED,
    ),
    FaultInfo(
        "kill-standby", Place.TREE, Means.WATCHDOG,
        "The standby is killed.",
        "Serving goes on; the standby is started again.",
        _RESTARTED + ".",
        _KILLED,
    ),
    FaultInfo(
        "stop-standby", Place.TREE, Means.WATCHDOG,
        "The standby is stopped.",
        "It shows no beat, and a signal holds it, for recovery.stopped_deadline_s: it is killed and started again.",
        "stall with cause frozen, of the standby.",
        _STOPPED,
    ),
    FaultInfo(
        "kill-workers", Place.TREE, Means.WATCHDOG,
        "Both workers are killed at once.",
        "Requests wait in the gateway until the first is back.",
        "readiness is lost (/readyz 503) for the time of a start.",
        _KILLED,
    ),
    FaultInfo(
        "stop-workers", Place.TREE, Means.WATCHDOG,
        "Both workers are stopped at once.",
        "Both are found frozen, killed and started again; requests wait.",
        "stall with cause frozen, twice.",
        _STOPPED,
    ),
    FaultInfo(
        "block-worker", Place.TREE, Means.WATCHDOG,
        "The active worker's only thread does something else for an hour.",
        "It shows no beat, neither path runs, and all of it sleeps without having called for the device: after "
        "recovery.blocked_deadline_s (one that is at the device: recovery.host_deadline_s) its batch is taken away: "
        "fence, replay, kill, restart.",
        "stall with cause frozen; the flight record has the stack of the call that holds it.",
        "Read the stack.",
    ),
    FaultInfo(
        "kill-holder", Place.TREE, Means.WATCHDOG,
        "The process that holds the weights is killed.",
        "Workers serve on; a new holder loads the weights, then the standby is replaced, then the active worker.",
        "weights_kill, _gone, _start and _ready, then one restart of each worker with reason weights.",
        _KILLED,
    ),
    FaultInfo(
        "stop-holder", Place.TREE, Means.WATCHDOG,
        "The process that holds the weights is stopped.",
        "It runs no kernel, and what it holds stays where it is: workers serve on, and one that starts meanwhile maps "
        "it from the manifest (on a game day the standby is killed as well). It is not replaced: to load the weights "
        "once more would cost more than it helps.",
        "weights_stopped in the events, and weights_resumed once it goes on.",
        _STOPPED,
    ),
    FaultInfo(
        "kill-gateway", Place.TREE, Means.WATCHDOG,
        "The gateway is killed.",
        "It is started again on the same address. Connections break: clients must send again.",
        "gateway_exit in the events; broken connections at the clients.",
        _KILLED,
    ),
    FaultInfo(
        "stop-gateway", Place.TREE, Means.WATCHDOG,
        "The gateway is stopped.",
        "A signal holds it for recovery.stopped_deadline_s: it is killed and started again.",
        "gateway_frozen, gateway_exit.",
        _STOPPED,
    ),
    FaultInfo(
        "kill-probe", Place.TREE, Means.WATCHDOG,
        "The process that asks NVML is killed.",
        "It is started again; serving knows nothing of it.",
        "fdmoe_gpu_collector_success 0 for a moment.",
        _KILLED,
    ),
    FaultInfo(
        "stop-probe", Place.TREE, Means.WATCHDOG,
        "The process that asks NVML is stopped.",
        "Its silence is seen, it is killed and started again; serving knows nothing of it.",
        "fdmoe_gpu_collector_success 0 until then.",
        _STOPPED,
    ),
    FaultInfo(
        "block-probe", Place.SURROUNDINGS, Means.WATCHDOG,
        "A reading of the GPU does not return, as a call of NVML into a driver that hangs.",
        "The device's silence is seen, and the probe is killed and started again. A process that sits in the driver "
        "may not die: until it has, there is no other one, for it would hang as well. Serving knows nothing of it.",
        "probe_silent in the events, fdmoe_gpu_collector_success 0 until it answers again.",
        "If it comes by itself, the driver hangs: look for Xids.",
    ),
    FaultInfo(
        "truncate-page", Place.SURROUNDINGS, Means.WATCHDOG,
        "The active worker's beat page is cut to nothing.",
        "Watchdog and gateway read it as a file and are told; the worker, which maps it, is replaced.",
        "page_lost in the events, a restart with reason page or exit.",
        "Look which program of the same user writes in the run directory.",
    ),
    FaultInfo(
        "noise-page", Place.SURROUNDINGS, Means.WATCHDOG,
        "The active worker's beat page is overwritten with random bytes.",
        "As truncate-page.",
        "page_lost in the events, a restart with reason page.",
        "Look which program of the same user writes in the run directory.",
    ),
    FaultInfo(
        "stop-watchdog", Place.TREE, Means.OUTSIDE,
        "The watchdog itself is stopped for two seconds.",
        "Serving goes on. When it turns again it judges nobody's silence by its own.",
        "fdmoe_watchdog_loop_lag_seconds; no stall.",
        _STOPPED,
    ),
    FaultInfo(
        "kill-watchdog", Place.TREE, Means.OUTSIDE,
        "The watchdog is killed.",
        "All its children end with it. Whoever started it starts it again: systemd, the kubelet.",
        "the pod restarts; connections break.",
        _KILLED,
    ),
    FaultInfo(
        "failing-worker", Place.SURROUNDINGS, Means.GAME_DAY,
        "A worker cannot start any more: what it needs is gone.",
        "Restarts with growing pauses, until recovery.restart_budget is spent; the survivor serves the baseline.",
        "restart_budget_gone in the events, FdmoeOnBaseline.",
        "Read worker_failed's reason, repair it, restart the service.",
    ),
    FaultInfo(
        "shared-memory-full", Place.SURROUNDINGS, Means.GAME_DAY,
        "The file system of the run directory has no room left. Played with a limit: no file that the watchdog, or a "
        "process that it starts from now on, writes may be larger than a kilobyte (RLIMIT_FSIZE).",
        "What serves goes on. A worker or a holder that must start fails with words, and is tried again.",
        "worker_not_started or weights_failed, with the number of bytes.",
        "Free /dev/shm, or give the pod more (emptyDir sizeLimit).",
    ),
    FaultInfo(
        "disk-full", Place.SURROUNDINGS, Means.GAME_DAY,
        "Flight records cannot be written during a stall. Played with a limit on the size of the "
        "watchdog's files (RLIMIT_FSIZE).",
        "The recovery does not wait for them.",
        "flight_record_lost in the events.",
        "Free the disk of flight_dir.",
    ),
    FaultInfo(
        "memory-at-warm-up", Place.SURROUNDINGS, Means.GAME_DAY,
        "The active worker is killed, and the next one does not get its memory: on a GPU another process takes all "
        "that is free, on the CPU its address space is limited to less than it needs.",
        "The other worker serves. Starts fail with words and are tried again with growing pauses, within "
        "recovery.restart_budget; once there is memory the worker is back.",
        "worker_failed with the allocator's own words, then worker_start again; fdmoe_worker_restarts_total.",
        "Find who has the memory: fdmoe_gpu_memory_used_bytes, nvidia-smi; of a pod, its limit.",
    ),
    FaultInfo(
        "busy-neighbour", Place.SURROUNDINGS, Means.OUTSIDE,
        "Other processes multiply matrices on the same GPU, or on all cores of the CPU.",
        "Answers take longer. Nothing is taken for a stall, and the fused path not for slow: the baseline is slower, "
        "too.",
        "fdmoe_request_duration_seconds and fdmoe_gpu_utilization_ratio; no event of a fault, but slow_excused may "
        "come: both paths have become slow.",
        "Give the service a GPU, or a MIG slice, of its own.",
    ),
    FaultInfo(
        "wall-clock", Place.SURROUNDINGS, Means.GAME_DAY,
        "The wall clock jumps an hour ahead while a launch stalls, to an hour behind while it is recovered, and back. "
        "The machine's clock stays: the processes of the tree load a library that gives them another one.",
        "As stall, in the same time: deadlines are counted on the monotonic clock alone.",
        "Events, logs and flight records with times from the future and the past.",
        "Look why: chrony or systemd-timesyncd say when they step the clock.",
    ),
    FaultInfo(
        "slow-clients", Place.DOOR, Means.OUTSIDE,
        "Clients that send their bodies a byte at a time.",
        "After gateway.upload_timeout_s they are answered 408 and cut off; others are served.",
        "fdmoe_request_duration_seconds{code=\"408\"}.",
        _NOTHING,
    ),
    FaultInfo(
        "half-bodies", Place.DOOR, Means.OUTSIDE,
        "Clients that promise more than they send and hang up.",
        "Their part of the arena is free again at once.",
        "499 in fdmoe_request_duration_seconds.",
        _NOTHING,
    ),
    FaultInfo(
        "disconnects", Place.DOOR, Means.OUTSIDE,
        "Clients that hang up while their request is computed.",
        "The answer is dropped, and its part of the arena is free again.",
        "499 in fdmoe_request_duration_seconds.",
        _NOTHING,
    ),
    FaultInfo(
        "malformed", Place.DOOR, Means.OUTSIDE,
        "Five hundred requests that are none: noise, broken heads, lengths and chunks, JSON that is none, tensors that "
        "are not what they say.",
        "Each is refused in words or cut off, and leaves nothing behind; what is good in spite of its changes is "
        "answered, and on a game day its answer is compared. Others are served.",
        "4xx in fdmoe_request_duration_seconds, fdmoe_refused_requests_total.",
        "If it lasts, look who sends them: the answer tells the client what is wrong.",
    ),
    FaultInfo(
        "flood", Place.DOOR, Means.OUTSIDE,
        "Ten thousand requests at once, each on a connection of its own. Where the hard limit of open files allows "
        "fewer, it says how many connections there were: each had its share of the requests, one after the other.",
        "As many wait as may; the others are told to come back.",
        "503 with Retry-After; fdmoe_queue_depth.",
        "Add replicas if it lasts.",
    ),
)  # fmt: skip


def page() -> str:
    """The page of all faults, as Markdown."""
    lines = [
        "# Faults",
        "",
        "Most can be injected by `fdmoe chaos NAME` into a running tree that was started with `--enable-chaos`. Those",
        "that `fdmoe chaos list` marks `game day` need a tree of their own. `fdmoe chaos game-day --report DIR` plays",
        "all, under load, or some: `--only NAME`.",
        "",
        "## Who killed it",
        "",
        "A process that ends by SIGKILL, and not by the watchdog, was mostly ended by the kernel's out-of-memory",
        "killer, or by somebody's hand. The service mends itself; the cause comes again.",
        "",
        "1. `worker_gone`, `weights_gone`, `gateway_exit` and `probe_exit` have the exit code, which is -9; of a",
        "   worker `fdmoe flight show` says `by SIGKILL`. It is the watchdog's own where the next `worker_start` or",
        "   `weights_start` has another reason than `exit`, and after `gateway_frozen` and `probe_silent`.",
        "2. `dmesg` on the node names whom the out-of-memory killer chose, and whose limit was reached.",
        "   `kubectl describe pod` says OOMKilled where it took the container's first process or all of them.",
        "3. Out of memory: raise the limit of the pod or the unit, or take what else runs there away. Spare processes",
        "   (`recovery.spare_process`) take memory of the host, too.",
    ]
    for place in Place:
        lines += ["", f"## {place.value}"]
        for fault in FAULTS:
            if fault.place is place:
                lines += [
                    "", f"### {fault.name}", "", fault.what, "",
                    f"- What follows: {fault.follows}", f"- What is seen: {fault.seen}", f"- What to do: {fault.todo}",
                ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
