"""What every message is, and who says hello."""

from __future__ import annotations

from typing import Literal

import msgspec

PROTOCOL = 3
# a batch may have thousands of requests; so many of them are named
MAX_NAMED_REQUESTS = 32
Path = Literal["fused", "shadow", "baseline"]
# what a fused launch can be given (fdmoe_kernels.faults), and what can be done to processes and their pages
KernelFault = Literal["stall", "endless", "nan", "wrong", "slow", "illegal"]
# one of those that lasts: a launch is wrong once, and a device that computes wrong does so until it is found
LastingFault = Literal["corrupt"]
ProcessFault = Literal[
    "kill-active", "stop-active", "kill-standby", "stop-standby", "kill-workers", "stop-workers", "block-worker",
    "kill-holder", "stop-holder", "kill-gateway", "stop-gateway", "kill-probe", "stop-probe", "block-probe",
    "truncate-page", "noise-page",
]  # fmt: skip
Fault = KernelFault | LastingFault | ProcessFault
Role = Literal["worker", "gateway", "weights", "probe", "annotator", "cli"]
# whose fault a failure is: the checkpoint or the settings (another try would end the same way), the device (the node
# must be looked at), the weights in memory (they must be loaded once more), or nobody knows
Blame = Literal["settings", "device", "weights", "unknown"]


class Message(msgspec.Struct, tag=True, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all messages: the tag is the class's name."""


class Hello(Message, frozen=True):
    """First message of a connection. `generation` is 0 for a role that has none."""

    protocol: int
    role: Role
    name: str
    generation: int
    pid: int


class ChildFailed(Message, frozen=True):
    """A worker or a weights holder cannot do its work and is about to exit: `reason` is for people."""

    reason: str
    blame: Blame
