"""How much may wait for a worker, and what does: in requests, tokens and bytes of the arena. No clock, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field

from fdmoe_ops.gateway.refusal import Reason


class QueueFull(RuntimeError):
    """As much waits as may, or the arena has no room; the message says which, `reason` says it for the metrics."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Limits:
    """`area_bytes` bounds the input and output areas of all that wait."""

    requests: int
    tokens: int
    area_bytes: int

    @property
    def upload_bytes(self) -> int:
        """For bodies that are still being read: whoever sends slowly leaves the other half to the others."""
        return self.area_bytes // 2


@dataclass(slots=True)
class Waiting:
    """What waits: in a queue, to be sent again, or (`upload_bytes`) for its body to be read.

    The limits are for what a layer has beyond its first request: a layer of which nothing waits is never refused for
    what others have queued. What waits is more than the limits by no more than one request a layer.
    """

    limits: Limits
    requests: int = 0
    tokens: int = 0
    area_bytes: int = 0
    upload_bytes: int = 0
    _layers: dict[str, int] = field(default_factory=dict)  # requests that wait; no layer has 0

    def check(self, layer: str, tokens: int, area_bytes: int, upload: bool) -> None:
        """Raises QueueFull if this one more is too much; `upload`: its body has not come whole."""
        limits = self.limits
        if layer not in self._layers:
            return
        if self.requests >= limits.requests:
            raise QueueFull(Reason.QUEUE_REQUESTS, f"{self.requests} requests wait; at most {limits.requests} may")
        if self.tokens + tokens > limits.tokens:
            raise QueueFull(
                Reason.QUEUE_TOKENS, f"{self.tokens} tokens wait; with {tokens} more than {limits.tokens} would"
            )
        if self.area_bytes + area_bytes > limits.area_bytes:
            raise QueueFull(
                Reason.QUEUE_BYTES,
                f"{self.area_bytes} bytes of tensors wait; with {area_bytes} more than {limits.area_bytes} would",
            )
        if upload and self.upload_bytes and self.upload_bytes + area_bytes > limits.upload_bytes:
            raise QueueFull(
                Reason.UPLOADS,
                f"{self.upload_bytes} bytes are held for bodies that are being read; with {area_bytes} more than "
                f"{limits.upload_bytes} would",
            )

    def enter(self, layer: str, tokens: int, area_bytes: int) -> None:
        self.requests += 1
        self.tokens += tokens
        self.area_bytes += area_bytes
        self._layers[layer] = self._layers.get(layer, 0) + 1

    def leave(self, layer: str, tokens: int, area_bytes: int) -> None:
        self.requests -= 1
        self.tokens -= tokens
        self.area_bytes -= area_bytes
        left = self._layers[layer] - 1
        if left:
            self._layers[layer] = left
        else:
            del self._layers[layer]
