"""The gateway as the watchdog starts it: its own process, its settings in a file."""

from __future__ import annotations

import signal
import socket

import numpy as np


def test_it_serves_and_a_stop_signal_lets_what_is_in_flight_finish(process, wait_until) -> None:
    assert (process.hello.role, process.hello.pid) == ("gateway", process.process.pid)
    assert process.listening.host == "127.0.0.1"
    worker = process.worker("a", 1)
    process.route(worker)
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    request = process.ask_later(x)
    batch = worker.next_batch()
    process.process.send_signal(signal.SIGTERM)
    wait_until(lambda: refuses(process.port), "no new connections")
    worker.answer(batch)
    assert np.array_equal(request.result().as_numpy("output"), 2 * x)
    assert process.process.wait(10) == 0


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_it_ends_with_the_watchdogs_connection_and_a_taken_port_is_named(process) -> None:
    second = process.run(process.port)
    _, text = second.communicate(timeout=10)
    assert second.returncode == 1
    process.control.close()
    assert process.process.wait(10) == 0
    assert f'"port": {process.port}' in text
    assert "Address already in use" in text
