"""What waits to be written: so many annotations at most, each in its newest form."""

from __future__ import annotations

import threading
from collections import OrderedDict

from fdmoe_ops.annotator.chronicle import Annotation


class Outbox:
    """One thread puts, another takes, and neither waits for the other."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._waiting: OrderedDict[int, Annotation] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, annotation: Annotation) -> bool:
        """False where there is no room for it. One that waits already is told further in its place."""
        with self._changed:
            if annotation.key not in self._waiting and len(self._waiting) >= self._room:
                return False
            self._waiting[annotation.key] = annotation
            self._changed.notify()
            return True

    def take(self) -> Annotation | None:
        """The oldest, once there is one; None when the box is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popitem(last=False)[1] if self._waiting else None

    def close(self) -> None:
        """What waits can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)
