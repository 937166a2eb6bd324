"""What the ladder wants done."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from fdmoe_watchdog.messages import Path


class Ending(Enum):
    """What the end of the tree means to whoever started it."""

    RESTART_ME = "restart_me"  # another start here may work
    SETTINGS = "settings"  # it would end the same way anywhere
    NODE = "node"  # not here: the node must be looked at first


@dataclass(frozen=True, slots=True)
class Start:
    worker: str
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartHolder:
    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class HolderReady:
    """Workers that start from now on map from this generation."""

    generation: int


@dataclass(frozen=True, slots=True)
class KillHolder:
    generation: int


@dataclass(frozen=True, slots=True)
class HolderGone:
    """The holder's process has been reaped."""

    generation: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Rung 1. Comes with a flight record, which must be safe before a Kill."""

    worker: str
    launch: int
    cause: str


@dataclass(frozen=True, slots=True)
class AbortEnded:
    """Rung 1 worked (`in_time`) or did not."""

    worker: str
    in_time: bool


@dataclass(frozen=True, slots=True)
class Fence:
    """Rung 2, first half: no answer of this generation counts any more."""

    worker: str
    generation: int
    cause: str


@dataclass(frozen=True, slots=True)
class Route:
    """Rung 2, second half: this worker is active from now on; unanswered batches go to it again."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Rung 3."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The process has been reaped."""

    worker: str
    generation: int


@dataclass(frozen=True, slots=True)
class SetPath:
    """`buckets`: the token buckets that the fused path may serve, the others being run in shadow; None: all."""

    worker: str
    path: Path
    previous: Path
    reason: str
    buckets: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class BudgetGone:
    """Rung 4 refused: this worker, or the holder ("weights"), is not started any more, and the fused path is not tried
    again."""

    worker: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Rung 5: nothing here can help; the tree ends."""

    reason: str
    ending: Ending
    node_action: str = ""


Action = (
    Start
    | StartHolder
    | HolderReady
    | KillHolder
    | HolderGone
    | Abort
    | AbortEnded
    | Fence
    | Route
    | Kill
    | Gone
    | SetPath
    | BudgetGone
    | GiveUp
)
