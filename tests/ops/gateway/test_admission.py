"""What is refused at the door, and for what, as tables."""

from __future__ import annotations

import pytest

from fdmoe_ops.gateway.admission import Limits, QueueFull, Waiting
from fdmoe_ops.gateway.pace import Pace, retry_after_s
from fdmoe_ops.gateway.refusal import Reason

LIMITS = Limits(requests=3, tokens=10, area_bytes=1000)


def waiting(*requests: tuple[int, int], layer: str = "m", upload_bytes: int = 0) -> Waiting:
    """With these requests of (tokens, area_bytes)."""
    here = Waiting(LIMITS)
    for tokens, area_bytes in requests:
        here.enter(layer, tokens, area_bytes)
    here.upload_bytes = upload_bytes
    return here


@pytest.mark.parametrize(
    ("here", "asked", "reason", "text"),
    [
        (
            waiting((1, 1), (1, 1), (1, 1)), (1, 1, False),
            Reason.QUEUE_REQUESTS, "3 requests wait; at most 3 may",
        ),
        (waiting((4, 1), (4, 1)), (3, 1, False), Reason.QUEUE_TOKENS, "8 tokens wait; with 3 more than 10 would"),
        (
            waiting((1, 900)), (1, 101, False),
            Reason.QUEUE_BYTES, "900 bytes of tensors wait; with 101 more than 1000 would",
        ),
        (
            waiting((1, 400), upload_bytes=400), (1, 101, True),
            Reason.UPLOADS, "400 bytes are held for bodies that are being read; with 101 more than 500 would",
        ),
    ],
)  # fmt: skip
def test_one_too_many(here: Waiting, asked: tuple[int, int, bool], reason: Reason, text: str) -> None:
    with pytest.raises(QueueFull) as caught:
        here.check("m", *asked)
    assert (caught.value.reason, str(caught.value)) == (reason, text)


@pytest.mark.parametrize(
    ("here", "asked"),
    [
        (waiting((1, 1), (1, 1)), (8, 998, False)),
        (waiting((1, 400), upload_bytes=400), (1, 100, True)),
        (waiting((1, 400), upload_bytes=400), (1, 600, False)),  # its body has come whole: it is no upload
        (waiting((1, 400)), (1, 600, True)),  # the only upload may be larger than half
        (waiting(*[(9, 900)] * 5, layer="other"), (10, 1000, True)),  # nothing of its layer waits
    ],
)
def test_just_not_too_many(here: Waiting, asked: tuple[int, int, bool]) -> None:
    here.check("m", *asked)


def test_a_layers_first_request_is_its_only_one_beyond_the_limits() -> None:
    here = waiting((9, 900), (1, 100), (0, 0), layer="other")
    here.check("m", 1, 100, False)
    here.enter("m", 1, 100)
    with pytest.raises(QueueFull, match=r"^4 requests wait; at most 3 may$"):
        here.check("m", 1, 100, False)
    here.leave("m", 1, 100)
    here.check("m", 1, 100, False)


def test_the_pace_is_tokens_and_seconds_of_the_last_batches() -> None:
    pace = Pace()
    assert pace.seconds_for(1000) == 0.0
    pace.observe(100, 0.5)
    assert pace.seconds_for(1000) == 5.0
    pace.observe(100, 1.5)
    assert pace.seconds_for(1000) == pytest.approx(1000 * (7 / 8 * 0.5 + 1.5) / (7 / 8 * 100 + 100))
    for _ in range(100):
        pace.observe(10, 1.0)
    assert pace.seconds_for(1000) == pytest.approx(100.0, abs=0.01)


@pytest.mark.parametrize(
    ("queue_s", "least_s", "timeout_s", "seconds"),
    [
        (0.0, 1, 60.0, 1),  # nothing was served yet
        (0.2, 3, 60.0, 3),
        (3.0, 1, 60.0, 3),
        (3.1, 1, 60.0, 4),
        (500.0, 1, 60.0, 60),  # by then all that wait have been served or answered 504
        (500.0, 1, 0.5, 1),
        (500.0, 5, 2.0, 5),
    ],
)
def test_retry_after(queue_s: float, least_s: int, timeout_s: float, seconds: int) -> None:
    assert retry_after_s(queue_s, least_s, timeout_s) == seconds
