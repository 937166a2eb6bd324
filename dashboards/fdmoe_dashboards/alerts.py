"""The alerts that follow from no objective: what the watchdog, the device and the gateway say of themselves."""

from __future__ import annotations

from textwrap import dedent

from fdmoe_dashboards.rule import Alert, Group, Record
from fdmoe_watchdog.settings import RecoverySettings
from fdmoe_watchdog.xid import XIDS, XidClass

HEARTBEAT_STALE_S = 1
IMBALANCE = 3
LATE_TURN_S: float = RecoverySettings.model_fields["watchdog_lag_max_s"].default
LATE_TURNS = "instance:fdmoe_watchdog_late_turns:rate5m"
# three a minute; not a share of all turns: one pause of a second is one turn in two hundred
LATE_PER_S = 0.05
# after these numbers the watchdog gives a device up, whatever else is read from it
FATAL_XIDS = tuple(number for number, xid in XIDS.items() if xid.kind in (XidClass.RESET_GPU, XidClass.DRAIN_NODE))
# the gateway's own limits; not `starting`, `draining` and heads that are no HTTP
FULL = ("arena", "queue_bytes", "queue_requests", "queue_tokens", "uploads")

_STARTING = 'ignoring (state) fdmoe_worker_state{state="starting"}'
_TARGET = "cluster, namespace, pod, job, instance"
_JOB = "cluster, namespace, job"
_OURS = "(last_over_time(fdmoe_build_info[3d]) or last_over_time(fdmoe_requests_in_flight[3d]))"
# gateway and watchdog are two targets of one host, or of one pod's address
_HOST = '"host", "$1", "instance", "(.*?)(:[0-9]+)?"'


def recordings() -> Group:
    late = Record(
        LATE_TURNS,
        "rate(fdmoe_watchdog_loop_lag_seconds_count[5m])\n"
        f'  - sum without (le) (rate(fdmoe_watchdog_loop_lag_seconds_bucket{{le="{LATE_TURN_S:g}"}}[5m]))',
        "Turns of the watchdog, a second, that came too late to judge anybody's silence.",
    )
    return Group("fdmoe-watchdog", (late,))


def alerts() -> Group:
    return Group("fdmoe", (*_serving(), *_progress(), *_recovery(), *_device(), *_load()))


def _serving() -> tuple[Alert, ...]:
    return (
        Alert(
            "FdmoeNotServing",
            dedent("""\
                max without (path) (fdmoe_path_active) == 0
                and (
                  max without (path) (max_over_time(fdmoe_path_active[30m])) == 1
                  or max without (path) (fdmoe_path_active offset 10m) == 0
                )"""),
            "critical",
            "{{ $labels.device }} of {{ $labels.instance }} serves on no path",
            "No worker of this device has answered requests for more than 2 minutes. With no other device in the tree, "
            "requests wait until they are too late.",
            "not-serving",
            wait="2m",
            why="A tree that starts has not served yet, and may load weights and compile for minutes: only who has "
            "served lately, or was down 10 minutes ago too, is down.",
        ),
        Alert(
            "FdmoeTargetDown",
            dedent(f"""\
                up == 0 and on ({_TARGET}) {_OURS}
                or
                  max_over_time(up[15m]) == 0
                  and (up offset 15m) == 0
                  and on ({_JOB}) {_OURS}
                  unless on ({_JOB}) (up == 1 unless on ({_TARGET}) {_OURS})"""),
            "critical",
            "{{ $labels.instance }} does not answer Prometheus",
            "This gateway or watchdog has answered before and its last scrapes failed, or it is one of a job of ours "
            "and has not answered for a quarter of an hour. The process is gone, hangs, or cannot be reached.",
            "target-down",
            wait="2m",
            why="The job's name is the operator's: a target is ours if it ever exported our metrics, or if all that "
            "answer in its job are ours: a replica that never came up. One that was taken away on purpose has no `up` "
            "any more.",
        ),
        Alert(
            "FdmoeTargetMissing",
            dedent("""\
                label_replace(absent(fdmoe_build_info), "target", "watchdog", "", "")
                or label_replace(absent(fdmoe_requests_in_flight), "target", "gateway", "", "")"""),
            "critical",
            "Prometheus has no {{ $labels.target }} of fdmoe",
            "No {{ $labels.target }} at all has answered a scrape for 10 minutes: none runs, or none is among the "
            "targets.",
            "target-missing",
            wait="10m",
        ),
        Alert(
            "FdmoeNoStandby",
            'sum without (worker, state) (fdmoe_worker_state{state=~"ready|aborting"}) == 1',
            "warning",
            "{{ $labels.device }} of {{ $labels.instance }} has no standby",
            "One of this device's two workers has not been ready for more than 10 minutes. Requests are answered; the "
            "next fault that needs a standby will cost some.",
            "no-standby",
            wait="10m",
            why="Both workers start together, and one may take recovery.startup_deadline_s (300 s) longer to compile.",
        ),
        Alert(
            "FdmoeOnBaseline",
            dedent("""\
                max without (path) (fdmoe_path_active{path=~"baseline|shadow"}) == 1
                and ignoring (device)
                sum without (path, bucket) (increase(fdmoe_layer_duration_seconds_count[15m])) > 0"""),
            "warning",
            "{{ $labels.device }} of {{ $labels.instance }} is served by the baseline path",
            "The fused path has not answered for more than 5 minutes. Answers are right, and slower. The fused path "
            "stalled again and again, fails its comparison with the baseline, or the restart budget is spent.",
            "on-baseline",
            wait="5m",
            why="In shadow the baseline answers too. Both count, or a fused path that fails every comparison would "
            "start the five minutes again with each try and never fire. The fused path comes back by comparisons on "
            "live requests: where none came lately nothing is wrong.",
        ),
    )


def _progress() -> tuple[Alert, ...]:
    return (
        Alert(
            "FdmoeHeartbeatStale",
            f"fdmoe_heartbeat_age_seconds > {HEARTBEAT_STALE_S} and {_STARTING} == 0",
            "critical",
            "Worker {{ $labels.worker }} of {{ $labels.instance }} has outstanding work and no heartbeat",
            "The device last wrote a heartbeat {{ $value | humanizeDuration }} ago while work is outstanding, and this "
            "has lasted for more than 30 seconds: the watchdog has not ended the stall. Requests wait or fail.",
            "heartbeat-stale",
            wait="30s",
            why="The age is 0 while nothing is outstanding, so that an idle service never fires. A worker that starts "
            "compiles its kernels in its first launches, within recovery.startup_deadline_s (300 s by default): its "
            "silence is none. After that the watchdog answers a stall within recovery.stall_ceiling_s (5 s) and ends "
            "even a process within recovery.kill_deadline_s (10 s): what is stale for 30 s is a stall that the "
            "watchdog has not ended.",
        ),
        Alert(
            "FdmoeBusyWithoutProgress",
            dedent(f"""\
                max without (uuid) (min_over_time(fdmoe_gpu_utilization_ratio[1m])) > 0.9
                and sum without (phase) (rate(fdmoe_device_work_items_total[1m])) == 0
                and (
                  max without (worker) (
                    min_over_time(fdmoe_heartbeat_age_seconds[1m]) > {HEARTBEAT_STALE_S} and {_STARTING} == 0
                  )
                  or max without (host) (
                    label_replace(
                      max without (uuid) (min_over_time(fdmoe_gpu_sm_activity_ratio[1m])) > 0.5
                      and max without (uuid) (max_over_time(fdmoe_gpu_tensor_activity_ratio[1m])) < 0.01
                      and max without (uuid) (max_over_time(fdmoe_gpu_dram_bandwidth_ratio[1m])) < 0.01,
                      {_HOST}
                    )
                    and on (host)
                    label_replace(min_over_time(fdmoe_requests_in_flight[1m]) > 0, {_HOST})
                  )
                )"""),
            "critical",
            "{{ $labels.device }} of {{ $labels.instance }} is busy and makes no progress",
            "The GPU reads {{ $value | humanizePercentage }} utilisation, and for minutes it has finished no work "
            "item, while a launch is outstanding or requests are in flight. A kernel that only spins looks like this: "
            "busy SMs, idle tensor cores, idle memory.",
            "busy-without-progress",
            wait="1m",
            why="Either a launch is outstanding, or somebody's kernel, which may be no launch of ours, fills the SMs "
            "and moves nothing: the baseline counts no work items, and reads weights all the time. Whole minutes of "
            "it, so that no scrape decides alone.",
        ),
        Alert(
            "FdmoeWatchdogLagging",
            dedent(f"""\
                {LATE_TURNS} > {LATE_PER_S:g}
                or rate(fdmoe_watchdog_loop_lag_seconds_count[5m]) == 0"""),
            "warning",
            "The watchdog of {{ $labels.instance }} comes too late",
            f"For more than 5 minutes more than {LATE_PER_S * 60:g} of its turns a minute came later than "
            f"{LATE_TURN_S:g} s, or none came at all. A watchdog that comes late judges nobody's silence: stalls are "
            "seen later, or not.",
            "watchdog-lagging",
            wait="5m",
        ),
    )


def _recovery() -> tuple[Alert, ...]:
    return (
        Alert(
            "FdmoeRecoveryFailed",
            dedent("""\
                increase(fdmoe_recovery_failures_total[15m]) > 0
                or (
                  max_over_time(fdmoe_recovery_failures_total[15m]) > 0
                  unless max_over_time(fdmoe_recovery_failures_total[15m] offset 15m) > 0
                )"""),
            "critical",
            'Recovery on {{ $labels.instance }} failed at the rung "{{ $labels.rung }}"',
            "The recovery ladder has come to an end in the last 15 minutes: at `restart` the budget is spent, and a "
            "worker or the holder of the weights is not started again; at `give_up` a device was left out. With the "
            "last device the tree ends.",
            "recovery-failed",
            why="A tree that starts on a bad GPU has given up before its first scrape, and no increase is seen of a "
            "counter that is born at 1.",
        ),
        Alert(
            "FdmoeRestartLoop",
            dedent("""\
                sum without (worker) (
                  fdmoe_worker_generation - min_over_time(fdmoe_worker_generation[10m])
                ) > 4"""),
            "warning",
            "Workers on {{ $labels.device }} of {{ $labels.instance }} are restarted again and again",
            "{{ $value }} starts in 10 minutes. When the restart budget is spent, the service stays on the baseline "
            "path without a standby, or ends.",
            "restart-loop",
            why="Generations and not the counter of restarts, which knows no device. The first start of both workers "
            "and a change of weights make four.",
        ),
        Alert(
            "FdmoeShadowMismatch",
            'sum without (result) (increase(fdmoe_shadow_checks_total{result="mismatch"}[15m])) > 0',
            "critical",
            "The fused path of {{ $labels.instance }} computed something else than the baseline",
            "A comparison in the last 15 minutes found another output than the baseline's. The fused path was taken "
            "out of service. Where it was serving, earlier answers that were not compared may be wrong too.",
            "shadow-mismatch",
        ),
    )


def _device() -> tuple[Alert, ...]:
    return (
        Alert(
            "FdmoeXidCritical",
            f'max_over_time(fdmoe_gpu_xid_total{{xid=~"{"|".join(map(str, FATAL_XIDS))}"}}[15m]) > 0',
            "critical",
            "Xid {{ $labels.xid }} on {{ $labels.device }} of {{ $labels.instance }}",
            "The driver reported an Xid after which this GPU serves nobody until it was reset, or until its node was "
            "looked at. The watchdog has given the device up.",
            "xid-critical",
            why="The numbers that mean a reset or a drained node (fdmoe_watchdog.xid). The count is the watchdog's own "
            "since its start, as long as the device stays out: no rate, which would forget. A tree that ends because "
            "of it is scraped twice at least, and remembered for 15 minutes.",
        ),
        Alert(
            "FdmoeRecoveryActionNeeded",
            'max_over_time(fdmoe_gpu_recovery_action{action!="none"}[15m]) == 1',
            "critical",
            "{{ $labels.device }} of {{ $labels.instance }} needs {{ $labels.action }}",
            "The driver asks for a recovery action of the GPU {{ $labels.uuid }}. Until it was taken the watchdog uses "
            "this device for nothing.",
            "recovery-action-needed",
        ),
        Alert(
            "FdmoeCollectorStale",
            "fdmoe_gpu_collector_success == 0",
            "warning",
            "{{ $labels.device }} of {{ $labels.instance }} cannot be read",
            "NVML has told nothing of this GPU for more than 5 minutes. Requests are served; utilisation, Xids and "
            "recovery actions are unknown meanwhile.",
            "collector-stale",
            wait="5m",
            why="Without a GPU there is no such series. A probe that hangs is replaced within "
            "watchdog.gpu_deadline_s (5 s).",
        ),
    )


def _load() -> tuple[Alert, ...]:
    return (
        Alert(
            "FdmoeQueueSaturated",
            dedent(f"""\
                sum without (reason) (
                  rate(fdmoe_refused_requests_total{{reason=~"{"|".join(FULL)}"}}[2m])
                ) / rate(instance:fdmoe_requests:sum[2m]) > 0.01"""),
            "warning",
            "{{ $labels.instance }} turns away {{ $value | humanizePercentage }} of its requests",
            "For more than 5 minutes queue, uploads or arena have been full: more comes than this replica can do.",
            "queue-saturated",
            wait="5m",
        ),
        Alert(
            "FdmoeExpertImbalance",
            f"fdmoe_expert_imbalance_ratio > {IMBALANCE}",
            "warning",
            "One expert of {{ $labels.layer }} has {{ $value | humanize }} times its share of the tokens",
            f"For more than 15 minutes the busiest expert of this layer on {{{{ $labels.instance }}}} has got more "
            f"than {IMBALANCE} times the mean of all: a launch takes as long as that expert's tiles.",
            "expert-imbalance",
            wait="15m",
            why="There is no ratio while fewer than 1000 tokens came in a minute.",
        ),
    )
