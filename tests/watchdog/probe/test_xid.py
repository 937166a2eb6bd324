"""The table of Xids, and the verdict as a table of histories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdmoe_watchdog.messages import GpuFigures, GpuReading, XidSeen
from fdmoe_watchdog.xid import LABELS, XIDS, Health, XidClass, kind, label, verdict

AT = 1000


def reading(begun_ns: int = AT, **figures: Any) -> GpuReading:
    return GpuReading("0", "nvml", begun_ns, True, (GpuFigures(uuid="GPU-1", name="X", **figures),))


def seen(xid: int, at_ns: int = AT) -> XidSeen:
    return XidSeen("0", "nvml", xid, at_ns)


def test_the_classes_are_these() -> None:
    found = {found: sorted(xid for xid in XIDS if kind(xid) is found) for found in XidClass}
    assert found == {
        XidClass.IGNORE: [44, 45, 63, 92, 121, 141, 157],
        XidClass.APPLICATION: [8, 11, 13, 25, 31, 32, 43, 69, 80, 137],
        XidClass.RELOAD_WEIGHTS: [94],
        XidClass.RECOVERY_ACTION: [144, 145, 146, 147, 148, 149, 150, 154],
        XidClass.RESET_GPU: [46, 48, 62, 64, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158],
        XidClass.DRAIN_NODE: [54, 74, 79, 151],
    }


def test_classes_agree_with_nvidias_immediate_actions() -> None:
    allowed = {
        "IGNORE": {XidClass.IGNORE, XidClass.APPLICATION},
        "RESTART_APP": {XidClass.APPLICATION, XidClass.RELOAD_WEIGHTS},
        "RESET_GPU": {XidClass.RESET_GPU},
        "WORKFLOW_XID_45": {XidClass.IGNORE},
        "WORKFLOW_XID_48": {XidClass.RESET_GPU},
        "WORKFLOW_NVLINK_ERR": {XidClass.DRAIN_NODE},
        "WORKFLOW_NVLINK5_ERR": {XidClass.RECOVERY_ACTION},
        "XID_154": {XidClass.RECOVERY_ACTION},
        "RESTART_BM": {XidClass.DRAIN_NODE},
        "RESTART_VM": {XidClass.DRAIN_NODE},
        "CHECK_MECHANICALS": {XidClass.DRAIN_NODE},
    }
    assert {xid: entry.action for xid, entry in XIDS.items() if entry.kind not in allowed[entry.action]} == {}


@given(st.integers(0, 2**64 - 1))
def test_labels_are_closed(xid: int) -> None:
    assert label(xid) in LABELS
    assert (label(xid) == "other") == (xid not in XIDS)
    assert xid in XIDS or kind(xid) is XidClass.IGNORE


CASES: list[tuple[str, list[GpuReading], list[XidSeen], Health]] = [
    ("nothing is known", [], [], Health("ok")),
    ("all is well", [reading(recovery_action="none", remap_pending=False)], [], Health("ok")),
    ("our own faulty worker", [reading()], [seen(13), seen(31), seen(43), seen(45)], Health("ok")),
    ("a number nobody knows", [reading()], [seen(9999)], Health("ok")),
    (
        "a contained error",
        [reading(recovery_action="none")],
        [seen(94)],
        Health("reload_weights", "Xid 94: uncorrectable memory error, contained in one process"),
    ),
    ("a contained error of an earlier worker", [reading()], [seen(94, AT - 1)], Health("ok")),
    (
        "an uncontained error, however old",
        [reading(recovery_action="none")],
        [seen(94), seen(95, 1)],
        Health("fail_closed", "Xid 95: uncorrectable memory error that may reach every process", "reset_gpu"),
    ),
    (
        "off the bus goes before what a reset cures",
        [],
        [seen(119), seen(79)],
        Health("fail_closed", "Xid 79: the GPU fell off the bus", "drain_node"),
    ),
    (
        "an ECC error alone",
        [],
        [seen(48)],
        Health("fail_closed", "Xid 48: uncorrectable (double bit) ECC error", "reset_gpu"),
    ),
    (
        "an ECC error whose row is to be remapped",
        [],
        [seen(63), seen(48)],
        Health("fail_closed", "Xid 48: uncorrectable (double bit) ECC error", "drain_and_reset"),
    ),
    (
        "a row that waits for its remapping",
        [reading(remap_pending=True)],
        [seen(63)],
        Health("ok", "memory waits to be remapped at the next reset", "reset_gpu"),
    ),
    (
        "a page that waits for its retirement",
        [reading(retired_pages_pending=True)],
        [],
        Health("ok", "memory waits to be remapped at the next reset", "reset_gpu"),
    ),
    (
        "a row that could not be remapped",
        [reading(remap_pending=True, remap_failed=True)],
        [],
        Health("fail_closed", "memory rows could not be remapped", "drain_node"),
    ),
    (
        "the driver asks for a reset",
        [reading(recovery_action="reset_gpu")],
        [seen(154)],
        Health("fail_closed", "NVML asks for a recovery action: reset_gpu", "reset_gpu"),
    ),
    (
        "the driver asks for what we do not know",
        [reading(recovery_action="unknown")],
        [],
        Health("fail_closed", "NVML asks for a recovery action: unknown", "drain_node"),
    ),
    ("a changed action that has not been asked for yet", [reading(AT)], [seen(154)], Health("ok")),
    ("a changed action that is none", [reading(AT + 1, recovery_action="none")], [seen(154), seen(149)], Health("ok")),
    (
        "a changed action that cannot be read",
        [reading(AT + 1)],
        [seen(154)],
        Health(
            "fail_closed", "Xid 154: the GPU's recovery action changed, and NVML does not say to what", "drain_node"
        ),
    ),
    (
        "a GPU that NVML has lost",
        [reading(fault="lost", recovery_action="reset_gpu")],
        [],
        Health("fail_closed", "NVML has lost the GPU", "drain_node"),
    ),
    (
        "a GPU that must be reset",
        [reading(fault="reset_required")],
        [],
        Health("fail_closed", "NVML says that the GPU must be reset", "reset_gpu"),
    ),
]


@pytest.mark.parametrize(("readings", "xids", "health"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_verdicts(readings: list[GpuReading], xids: list[XidSeen], health: Health) -> None:
    assert verdict(readings, xids, AT) == health


@pytest.mark.parametrize("xid", [xid for xid in XIDS if kind(xid) in (XidClass.RESET_GPU, XidClass.DRAIN_NODE)])
def test_what_condemns_fails_closed_alone(xid: int) -> None:
    assert verdict([], [seen(xid)], AT).state == "fail_closed"


@given(st.lists(st.sampled_from([xid for xid in XIDS if kind(xid) in (XidClass.IGNORE, XidClass.APPLICATION)])))
def test_no_number_of_faulty_applications_fails_the_node(xids: list[int]) -> None:
    assert verdict([reading(recovery_action="none")], [seen(xid) for xid in xids], 0) == Health("ok")
