"""Ten thousand requests at once, each on a connection of its own: a bounded queue, an answer for all, nothing left."""

from __future__ import annotations

import resource
import selectors
import socket
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import raw_http

QUEUE = 4_000
REQUEST = raw_http.infer(1)


@pytest.fixture
def connections() -> Iterator[int]:
    """How many this process may open: 10 000, or what the system's limit of open files leaves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield 10_000 if hard == resource.RLIM_INFINITY else min(10_000, hard - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Clients that have sent a request of one token each."""

    def __init__(self, port: int, count: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.statuses: Counter[int] = Counter()
        for _ in range(count):
            connection = raw_http.connect(port)
            connection.sendall(REQUEST)
            self.selector.register(connection, selectors.EVENT_READ)

    def read(self, count: int) -> None:
        """Until so many have been answered; each is checked whole."""
        while self.statuses.total() < count:
            ready = self.selector.select(raw_http.DEADLINE_S)
            assert ready, f"{self.statuses} of {count}, and nothing more comes"
            for key, _ in ready:
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                answer = raw_http.receive(connection)
                assert answer is not None
                if answer.status == 503:
                    assert answer.error == f"{QUEUE} requests wait; at most {QUEUE} may"
                    assert int(answer.headers["retry-after"]) >= 1
                else:
                    assert raw_http.is_right(answer, 1)
                self.statuses[answer.status] += 1
                self.selector.unregister(connection)
                raw_http.vanish(connection)


def test_ten_thousand_at_once(running_process, layers, wait_until, connections: int) -> None:
    with running_process(arena_bytes=8 << 20, max_queue_requests=QUEUE) as process:
        worker = process.worker("a", 1)
        process.route(worker)
        crowd = Crowd(process.port, connections)
        first = worker.next_batch()
        served = QUEUE + len(first.segments)
        crowd.read(connections - served)
        assert crowd.statuses == {503: connections - served}
        assert process.scraped("fdmoe_queue_depth") == QUEUE
        assert process.scraped("fdmoe_requests_in_flight") == served
        single = process.ask_later(np.ones((1, 8), np.float16), layers[2])
        wait_until(lambda: process.scraped("fdmoe_queue_depth") == QUEUE + 1, "another layer's request is taken")
        worker.answer(first)
        second = worker.next_batch()
        assert second.layer == layers[2].name, "and does not wait for the crowd"
        worker.answer(second)
        assert np.array_equal(single.result().as_numpy("output"), np.full((1, 8), 2, np.float16))
        for _ in range(-(-QUEUE // 64)):
            worker.answer(worker.next_batch())
        crowd.read(connections)
        assert crowd.statuses == {503: connections - served, 200: served}
        assert process.scraped("fdmoe_refused_requests_total", reason="queue_requests") == connections - served
        wait_until(lambda: process.scraped("fdmoe_requests_in_flight") == 0, "no request is in flight")
        assert process.scraped("fdmoe_queue_depth") == 0
        assert process.scraped("fdmoe_arena_used_bytes") == 0
        assert process.process.poll() is None
