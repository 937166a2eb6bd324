"""What an Xid means for us, and the health of a GPU as a pure function of what the probe told.

Numbers, meanings and immediate actions follow NVIDIA's Xid catalog for A100 to GB200
(docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html). What row remapping and the recovery action ask for
follows "Error Recovery and Response Flags" of its GPU Memory Error Management
(docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import Literal

from fdmoe_watchdog.messages import GpuFigures, GpuReading, RecoveryAction, XidSeen

OTHER = "other"
NodeAction = RecoveryAction | Literal["drain_node"]


class XidClass(Enum):
    """What follows from a number alone.

    ignore           nothing: it accompanies another event, or a clean-up such as that of a killed process
    application      the process that caused it is at fault; the GPU is not
    reload_weights   the process that met it has lost its context; the GPU goes on, without the memory that failed, in
                     which weights may have been
    recovery_action  the number does not say; NVML's recovery action does
    reset_gpu        the GPU serves nobody until it has been reset
    drain_node       a reset does not help: power, bus or links of the node
    """

    IGNORE = "ignore"
    APPLICATION = "application"
    RELOAD_WEIGHTS = "reload_weights"
    RECOVERY_ACTION = "recovery_action"
    RESET_GPU = "reset_gpu"
    DRAIN_NODE = "drain_node"


@dataclass(frozen=True, slots=True)
class Xid:
    """`action` is NVIDIA's immediate action, by the catalog's name for it."""

    kind: XidClass
    meaning: str
    action: str


XIDS: dict[int, Xid] = {
    8: Xid(XidClass.APPLICATION, "a channel made no progress in its time", "RESTART_APP"),
    11: Xid(XidClass.APPLICATION, "corrupted commands in a push buffer", "RESTART_APP"),
    13: Xid(XidClass.APPLICATION, "exception in a kernel, such as an illegal instruction or address", "RESTART_APP"),
    25: Xid(XidClass.APPLICATION, "illegal commands in a push buffer", "RESTART_APP"),
    31: Xid(XidClass.APPLICATION, "page fault: a kernel used an address that is not mapped", "RESTART_APP"),
    32: Xid(XidClass.APPLICATION, "corrupted commands met while they were fetched", "RESTART_APP"),
    43: Xid(XidClass.APPLICATION, "a process's channels were stopped after its fault", "IGNORE"),
    44: Xid(XidClass.IGNORE, "fault during a context switch", "IGNORE"),
    45: Xid(XidClass.IGNORE, "channels removed, as after a kill or because of another Xid", "WORKFLOW_XID_45"),
    46: Xid(XidClass.RESET_GPU, "the GPU stopped processing", "RESET_GPU"),
    48: Xid(XidClass.RESET_GPU, "uncorrectable (double bit) ECC error", "WORKFLOW_XID_48"),
    54: Xid(XidClass.DRAIN_NODE, "auxiliary power is not connected", "CHECK_MECHANICALS"),
    62: Xid(XidClass.RESET_GPU, "an internal microcontroller halted", "RESET_GPU"),
    63: Xid(XidClass.IGNORE, "a memory row was recorded for remapping at the next reset", "IGNORE"),
    64: Xid(XidClass.RESET_GPU, "a memory row could not be recorded for remapping", "RESET_GPU"),
    69: Xid(XidClass.APPLICATION, "a kernel or command of the wrong class", "RESTART_APP"),
    74: Xid(XidClass.DRAIN_NODE, "NVLink error", "WORKFLOW_NVLINK_ERR"),
    79: Xid(XidClass.DRAIN_NODE, "the GPU fell off the bus", "RESTART_BM"),
    80: Xid(XidClass.APPLICATION, "corrupted data sent to the GPU", "RESTART_APP"),
    92: Xid(XidClass.IGNORE, "many corrected (single bit) ECC errors", "IGNORE"),
    94: Xid(XidClass.RELOAD_WEIGHTS, "uncorrectable memory error, contained in one process", "RESTART_APP"),
    95: Xid(XidClass.RESET_GPU, "uncorrectable memory error that may reach every process", "RESET_GPU"),
    109: Xid(XidClass.RESET_GPU, "a context could not be switched in time", "RESET_GPU"),
    110: Xid(XidClass.RESET_GPU, "security fault", "RESET_GPU"),
    119: Xid(XidClass.RESET_GPU, "the GPU's system processor did not answer", "RESET_GPU"),
    120: Xid(XidClass.RESET_GPU, "the GPU's system processor failed", "RESET_GPU"),
    121: Xid(XidClass.IGNORE, "error on the link to the CPU (C2C)", "IGNORE"),
    136: Xid(XidClass.RESET_GPU, "NVLink training failed", "RESET_GPU"),
    137: Xid(XidClass.APPLICATION, "illegal access to a peer's memory", "IGNORE"),
    140: Xid(XidClass.RESET_GPU, "unrecovered ECC error", "RESET_GPU"),
    141: Xid(XidClass.IGNORE, "CUDA fast path error", "IGNORE"),
    143: Xid(XidClass.RESET_GPU, "the GPU could not be initialised", "RESET_GPU"),
    144: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (SAW)", "WORKFLOW_NVLINK5_ERR"),
    145: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (RLW)", "WORKFLOW_NVLINK5_ERR"),
    146: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (TLW)", "WORKFLOW_NVLINK5_ERR"),
    147: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (TREX)", "WORKFLOW_NVLINK5_ERR"),
    148: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (NVLPW_CTRL)", "WORKFLOW_NVLINK5_ERR"),
    149: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (NETIR)", "WORKFLOW_NVLINK5_ERR"),
    150: Xid(XidClass.RECOVERY_ACTION, "NVLink 5 error (MSE)", "WORKFLOW_NVLINK5_ERR"),
    151: Xid(XidClass.DRAIN_NODE, "a key could not be changed (confidential computing)", "RESTART_VM"),
    154: Xid(XidClass.RECOVERY_ACTION, "the GPU's recovery action changed", "XID_154"),
    155: Xid(XidClass.RESET_GPU, "NVLink error defined by software", "RESET_GPU"),
    156: Xid(XidClass.RESET_GPU, "a faulty part of the GPU is to be retired", "RESET_GPU"),
    157: Xid(XidClass.IGNORE, "a faulty part of the GPU could not be retired", "IGNORE"),
    158: Xid(XidClass.RESET_GPU, "the GPU did not answer within the fatal timeout", "RESET_GPU"),
}
# the label values of the metric, closed whatever a driver reports
LABELS = (*(str(number) for number in XIDS), OTHER)


def label(xid: int) -> str:
    return str(xid) if xid in XIDS else OTHER


def kind(xid: int) -> XidClass:
    """A number that is not in the table condemns nothing: the recovery action does where it must."""
    return XIDS[xid].kind if xid in XIDS else XidClass.IGNORE


@dataclass(frozen=True, slots=True)
class Health:
    """`node_action` is what the node's owner has to do. It can be other than none while the GPU is ok: a row that waits
    for its remapping needs a reset at some time, and until then work goes on."""

    state: Literal["ok", "reload_weights", "fail_closed"]
    reason: str = ""
    node_action: NodeAction = "none"


def verdict(readings: Iterable[GpuReading], xids: Iterable[XidSeen], since_ns: int) -> Health:
    """The worst that follows from the last readings and the Xids of one device; times are of CLOCK_MONOTONIC.

    since_ns: a contained error before that has been dealt with; what condemns the GPU is never forgotten.
    """
    readings, xids = tuple(readings), tuple(xids)
    gpus = [gpu for reading in readings for gpu in reading.gpus]
    for health in chain(_condemned_by_nvml(gpus), _condemned_by_xids(readings, xids)):
        return health
    for seen in xids:
        if kind(seen.xid) is XidClass.RELOAD_WEIGHTS and seen.at_ns >= since_ns:
            return Health("reload_weights", _words(seen.xid))
    for gpu in gpus:
        if gpu.remap_pending or gpu.retired_pages_pending:
            return Health("ok", "memory waits to be remapped at the next reset", "reset_gpu")
    return Health("ok")


def _condemned_by_nvml(gpus: Iterable[GpuFigures]) -> Iterator[Health]:
    for gpu in gpus:
        if gpu.fault == "lost":
            yield Health("fail_closed", "NVML has lost the GPU", "drain_node")
        if gpu.recovery_action not in (None, "none"):
            action: NodeAction = "drain_node" if gpu.recovery_action == "unknown" else gpu.recovery_action
            yield Health("fail_closed", f"NVML asks for a recovery action: {gpu.recovery_action}", action)
        if gpu.fault == "reset_required":
            yield Health("fail_closed", "NVML says that the GPU must be reset", "reset_gpu")
        if gpu.remap_failed:
            yield Health("fail_closed", "memory rows could not be remapped", "drain_node")


def _condemned_by_xids(readings: tuple[GpuReading, ...], xids: tuple[XidSeen, ...]) -> Iterator[Health]:
    numbers = {seen.xid for seen in xids}
    for condemns in (XidClass.DRAIN_NODE, XidClass.RESET_GPU, XidClass.RECOVERY_ACTION):
        for seen in xids:
            if kind(seen.xid) is not condemns:
                continue
            if condemns is XidClass.DRAIN_NODE:
                yield Health("fail_closed", _words(seen.xid), "drain_node")
            elif condemns is XidClass.RESET_GPU:
                # the catalog: an ECC error whose row is to be remapped asks for a drain first
                action: NodeAction = "drain_and_reset" if seen.xid == 48 and numbers & {63, 64} else "reset_gpu"
                yield Health("fail_closed", _words(seen.xid), action)
            elif _unanswered(readings, seen):
                yield Health("fail_closed", f"{_words(seen.xid)}, and NVML does not say to what", "drain_node")


def _unanswered(readings: tuple[GpuReading, ...], seen: XidSeen) -> bool:
    """Whether the driver was asked for the recovery action after the event and does not know one. Before it was asked
    nothing is decided: the probe asks as soon as it has told of the event."""
    asked = [gpu for reading in readings if reading.begun_ns > seen.at_ns for gpu in reading.gpus]
    return bool(asked) and any(gpu.recovery_action is None for gpu in asked)


def _words(xid: int) -> str:
    return f"Xid {xid}: {XIDS[xid].meaning}"
