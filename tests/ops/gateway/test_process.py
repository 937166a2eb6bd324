"""The gateway as the watchdog starts it: its own process, its settings in a file."""

from __future__ import annotations

import numpy as np


def test_it_serves(process) -> None:
    assert (process.hello.role, process.hello.pid) == ("gateway", process.process.pid)
    assert process.listening.host == "127.0.0.1"
    process.route(process.worker("a", 1, automatic=True))
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    assert np.array_equal(process.ask(x).as_numpy("output"), 2 * x)


def test_it_ends_with_the_watchdogs_connection_and_a_taken_port_is_named(process) -> None:
    second = process.run(process.port)
    _, text = second.communicate(timeout=10)
    assert second.returncode == 1
    process.control.close()
    assert process.process.wait(10) == 0
    assert f'"port": {process.port}' in text
    assert "Address already in use" in text
