"""The probe's threads over a device that is scripted: what is sent, when, and how the process ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from structlog.testing import capture_logs

from fdmoe_watchdog.channel import ChannelClosed
from fdmoe_watchdog.messages import GpuFailed, GpuReading, GpuSource, Message, XidSeen
from fdmoe_watchdog.probe.backend import Unreadable
from fdmoe_watchdog.probe.loop import run

READING = GpuReading("0", "nvml", 1, True, ())
XID = XidSeen("0", "nvml", 94, 5)


class Scripted:
    """A backend and its one device. `xids` is filled by the test; `read` can be made to fail."""

    source: GpuSource = "nvml"

    def __init__(self, read: Callable[[], GpuReading] = lambda: READING) -> None:
        self.xids: queue.Queue[XidSeen | Unreadable] = queue.Queue()
        self.read = read

    def open(self, _device: str) -> Scripted:
        return self

    def wait_for_xid(self, timeout_s: float) -> XidSeen | None:
        try:
            found = self.xids.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(found, Unreadable):
            raise found
        return found


def started(backend: Scripted, send: Callable[[Message], None]) -> queue.Queue[int]:
    """The loop in a thread; its exit code comes out of the queue. A reading an hour."""
    code: queue.Queue[int] = queue.Queue()
    threading.Thread(
        target=lambda: code.put(run(backend, ["0"], send, interval_s=3600, retry_s=3600)), daemon=True
    ).start()
    return code


def test_an_xid_is_sent_at_once_and_a_reading_follows_long_before_its_time() -> None:
    backend, sent = Scripted(), queue.Queue[Message]()
    started(backend, sent.put)
    assert sent.get(timeout=10) == READING
    backend.xids.put(XID)
    assert [sent.get(timeout=10), sent.get(timeout=10)] == [XID, READING]


def test_no_more_xids_is_no_end_of_the_readings() -> None:
    backend, sent = Scripted(), queue.Queue[Message]()
    code = started(backend, sent.put)
    backend.xids.put(Unreadable("error", "GPU is lost"))
    assert sent.get(timeout=10) == READING
    assert code.empty()


def test_a_driver_that_ends_is_told_before_the_process_ends() -> None:
    def ended() -> GpuReading:
        raise Unreadable("no_driver", "the driver ended")

    sent: queue.Queue[Message] = queue.Queue()
    assert started(Scripted(ended), sent.put).get(timeout=10) == 1
    assert sent.get(timeout=10) == GpuFailed("0", "nvml", "no_driver", "the driver ended")


def test_without_a_watchdog_it_ends() -> None:
    def closed(_message: Message) -> None:
        raise ChannelClosed("peer closed the connection")

    with capture_logs() as logs:
        assert started(Scripted(), closed).get(timeout=10) == 1
    assert logs == [{"event": "watchdog_left", "log_level": "info", "reason": "peer closed the connection"}]


def test_a_mistake_of_ours_ends_it_with_its_traceback() -> None:
    def mistaken() -> GpuReading:
        raise ZeroDivisionError("ours")

    with capture_logs() as logs:
        assert started(Scripted(mistaken), lambda _message: None).get(timeout=10) == 1
    assert logs == [{"event": "probe_broken", "log_level": "error", "exc_info": True}]
