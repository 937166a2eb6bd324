"""The gateway's traffic between two beats, in numbers."""

from __future__ import annotations

from fdmoe_ops.gateway.traffic import TrafficMeter
from fdmoe_watchdog import messages
from fdmoe_watchdog.messages import GatewayBeat, PathTraffic, Traffic


def test_an_interval_has_the_answers_of_each_path_and_the_failures() -> None:
    meter = TrafficMeter(10.0)
    for milliseconds in range(1, 102):
        meter.answered("fused", "200", milliseconds / 1000)
    meter.answered("baseline", "200", 0.5)
    # the caller's own mistakes, and one who left, are no failures of ours; 0 tokens run on no path
    for path, code in (("none", "400"), ("none", "499"), ("none", "200"), ("none", "503"), ("fused", "500")):
        meter.answered(path, code, 0.1)
    assert meter.take(10.5, in_flight=3, queued=1) == Traffic(
        0.5, {"fused": PathTraffic(101, 0.051, 0.1), "baseline": PathTraffic(1, 0.5, 0.5)}, 2, 3, 1
    )
    assert meter.take(11.25, in_flight=0, queued=0) == Traffic(0.75, {}, 0, 0, 0)


def test_times_are_of_the_last_512_answers_and_all_are_counted() -> None:
    meter = TrafficMeter(0.0)
    for _ in range(1000):
        meter.answered("fused", "200", 9.0)
    for _ in range(512):
        meter.answered("fused", "200", 0.001)
    assert meter.take(0.5, 0, 0).paths == {"fused": PathTraffic(1512, 0.001, 0.001)}


def test_a_beat_takes_its_traffic_along() -> None:
    beat = GatewayBeat(Traffic(0.5, {"shadow": PathTraffic(1, 0.1, 0.2)}, 0, 0, 0))
    assert messages.decode(messages.encode(beat)) == beat
    assert messages.decode(messages.encode(GatewayBeat())) == GatewayBeat(None)
