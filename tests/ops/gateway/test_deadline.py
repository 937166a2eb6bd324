"""How long a request may take: what it asks for itself, and what becomes of it when its time is up."""

from __future__ import annotations

import time

import numpy as np
import pytest
import raw_http

from fdmoe_ops.gateway import deadline
from fdmoe_ops.gateway.refusal import Refusal

ROW = np.ones((1, 8), np.float32)


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"1", 0.001), (b"1500", 1.5), (b"0010", 0.01), (b"999999999", 999_999.999)]
)
def test_the_header_is_in_milliseconds(value: bytes, seconds: float) -> None:
    assert deadline.from_headers([(b"host", b"x"), (b"x-request-timeout-ms", value)]) == seconds


@pytest.mark.parametrize("value", [b"0", b"-1", b"1.5", b"", b"1 s", b"1000000000", b"\xb2"])
def test_a_bad_header_is_named(value: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        deadline.from_headers([(b"x-request-timeout-ms", value)])
    shown = value.decode("latin-1")
    assert (caught.value.status, str(caught.value)) == (
        400,
        f"X-Request-Timeout-Ms is {shown!r}; whole milliseconds from 1 to 999999999 are allowed",
    )


@pytest.mark.parametrize(("value", "seconds"), [(1, 1e-6), (2_500_000, 2.5), (0, None), (2**64 - 1, (2**64 - 1) / 1e6)])
def test_the_parameter_is_in_microseconds_and_0_is_none(value: int, seconds: float | None) -> None:
    assert deadline.from_parameters({"timeout": value}) == seconds


@pytest.mark.parametrize("value", [-1, 1.5, True, "1000", None, [1], 2**64])
def test_a_bad_parameter_is_named(value: object) -> None:
    with pytest.raises(Refusal) as caught:
        deadline.from_parameters({"timeout": value})
    assert (caught.value.status, str(caught.value)) == (
        400,
        f"the parameter timeout is {value!r}; whole microseconds from 0 (none) to 18446744073709551615 are allowed",
    )


def test_a_request_that_says_nothing() -> None:
    assert deadline.from_headers([(b"host", b"x")]) is None
    assert deadline.from_parameters({"priority": 1}) is None


@pytest.mark.parametrize(
    ("lines", "parameters", "text"),
    [
        (["X-Request-Timeout-Ms: 40"], {}, "no worker answered within 0.04 s"),
        ([], {"timeout": 30_000}, "no worker answered within 0.03 s"),
        (["X-Request-Timeout-Ms: 20"], {"timeout": 30_000_000}, "no worker answered within 0.02 s"),
        (["X-Request-Timeout-Ms: 9000"], {"timeout": 10_000}, "no worker answered within 0.01 s"),
        (["X-Request-Timeout-Ms: 9000"], {"timeout": 0}, "no worker answered within 0.2 s"),
    ],
)
def test_the_smallest_of_all_counts(running_tree, lines: list[str], parameters: dict[str, int], text: str) -> None:
    with running_tree(request_timeout_s=0.2) as tree:
        tree.route(tree.worker("a", 1))
        answer = raw_http.exchange(tree.port, raw_http.infer(1, *lines, **parameters))
        assert (answer.status, answer.error) == (504, text)


@pytest.mark.parametrize(
    ("lines", "parameters", "text"),
    [
        (
            ["X-Request-Timeout-Ms: soon"], {},
            "X-Request-Timeout-Ms is 'soon'; whole milliseconds from 1 to 999999999 are allowed",
        ),
        (
            [], {"timeout": -5},
            "the parameter timeout is -5; whole microseconds from 0 (none) to 18446744073709551615 are allowed",
        ),
    ],
)  # fmt: skip
def test_bad_values_over_http(serving, lines: list[str], parameters: dict[str, int], text: str) -> None:
    answer = raw_http.exchange(serving.port, raw_http.infer(1, *lines, **parameters))
    assert (answer.status, answer.error) == (400, text)
    assert serving.free_bytes == serving.gateway.allocator.size_bytes


def test_the_client_of_triton_sends_its_timeout_in_microseconds(tree) -> None:
    tree.route(tree.worker("a", 1))
    request = tree.ask_later(ROW, timeout=50_000)
    error = request.result()
    assert (error.status(), error.message()) == ("504", "no worker answered within 0.05 s")


def test_too_late_in_the_queue_is_answered_at_once_and_never_sent(tree, wait_until) -> None:
    worker = tree.worker("a", 1)
    tree.route(worker)
    running = tree.ask_later(np.ones((3, 8), np.float32))
    held = worker.next_batch()
    started = time.monotonic()
    answer = raw_http.exchange(tree.port, raw_http.infer(2, "X-Request-Timeout-Ms: 100"))
    waited_s = time.monotonic() - started
    assert (answer.status, answer.error) == (504, "no worker answered within 0.1 s")
    assert 0.1 <= waited_s < 2.0
    wait_until(lambda: tree.metric("fdmoe_queue_depth") == 0, "the queue")
    worker.answer(held)
    assert np.array_equal(running.result().as_numpy("output"), np.full((3, 8), 2, np.float32))
    later = tree.ask_later(ROW)
    batch = worker.next_batch()
    worker.answer(batch)
    assert np.array_equal(later.result().as_numpy("output"), 2 * ROW)
    assert [[segment.tokens for segment in batch.segments] for batch in worker.batches] == [[3], [1]]
    wait_until(lambda: tree.free_bytes == tree.gateway.allocator.size_bytes, "all memory is back")


def test_without_a_worker_each_request_waits_for_its_own_deadline(tree, wait_until) -> None:
    worker, standby = tree.worker("a", 1), tree.worker("b", 1, automatic=True)
    tree.route(worker)
    tree.fence(worker)
    wait_until(lambda: tree.get("/readyz")[0] == 503, "not ready")
    patient = tree.ask_later(ROW)
    hurried = raw_http.exchange(tree.port, raw_http.infer(1, "X-Request-Timeout-Ms: 50"))
    assert (hurried.status, hurried.error) == (504, "no worker answered within 0.05 s")
    assert tree.metric("fdmoe_queue_depth") == 1
    tree.route(standby)
    assert np.array_equal(patient.result().as_numpy("output"), 2 * ROW)
