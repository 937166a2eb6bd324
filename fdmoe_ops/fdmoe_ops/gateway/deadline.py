"""How long a request may take, as the request itself says.

X-Request-Timeout-Ms   a header, in milliseconds: a proxy can set it without reading the body. There is no standard one
                       for HTTP; Envoy's x-envoy-upstream-rq-timeout-ms has the same unit.
timeout                a parameter of the inference request, in microseconds: NVIDIA's Triton Inference Server has it
                       so, and its clients send it. As there, 0 means that the request asks for nothing.
"""

from __future__ import annotations

from typing import Any

from fdmoe_ops.gateway.refusal import Refusal

HEADER = b"x-request-timeout-ms"
MAX_HEADER_MS = 10**9 - 1
# as in Triton, an unsigned 64-bit number
MAX_PARAMETER_US = 2**64 - 1


def from_headers(headers: list[tuple[bytes, bytes]]) -> float | None:
    """Seconds; None if the request does not say. Raises Refusal (400)."""
    for name, value in headers:
        if name == HEADER:
            if not value.isdigit() or len(value) > 9 or int(value) == 0:
                shown = repr(value[:64].decode("latin-1"))
                raise Refusal(
                    400, f"X-Request-Timeout-Ms is {shown}; whole milliseconds from 1 to {MAX_HEADER_MS} are allowed"
                )
            return int(value) / 1e3
    return None


def from_parameters(parameters: dict[str, Any]) -> float | None:
    """Seconds; None if the request does not say. Raises Refusal (400)."""
    value = parameters.get("timeout", 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_PARAMETER_US:
        raise Refusal(
            400,
            f"the parameter timeout is {repr(value)[:64]}; whole microseconds from 0 (none) to {MAX_PARAMETER_US} are "
            "allowed",
        )
    return value / 1e6 if value else None
