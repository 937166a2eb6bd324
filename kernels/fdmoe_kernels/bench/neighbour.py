"""A neighbour on the same device: another process that multiplies matrices while it is told to, and says how fast.

    parent                          neighbour
                              <---  {"ready": true}
    {"seconds": 1.0}          --->
                              <---  {"median_us": 190.2, "products": 5200}
    end of file               --->  (ends)

JSON lines over pipes; every wait of the parent has a deadline.
"""

from __future__ import annotations

import json
import os
import selectors
import statistics
import subprocess
import sys
import time
from types import TracebackType
from typing import Any

import torch

SIZES = {"cuda": 4096, "cpu": 256}
_PRODUCTS_A_BATCH = 8
_START_TIMEOUT_S = 120.0
_ANSWER_TIMEOUT_S = 30.0


class NeighbourError(RuntimeError):
    """The neighbour did not answer in time, or ended; the message says when."""


class Neighbour:
    """The process, as a context manager. `start` begins a measurement, `answered` and `result` end it."""

    def __init__(self, device: str) -> None:
        command = (sys.executable, "-P", "-m", "fdmoe_kernels.bench.neighbour", device)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._output, selectors.EVENT_READ)
        self._received = b""
        self._seconds = 0.0

    def __enter__(self) -> Neighbour:
        try:
            self._line("when it started", _START_TIMEOUT_S)
        except NeighbourError:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def start(self, seconds: float) -> None:
        """Begin to measure for about `seconds`."""
        self._seconds = seconds
        self._input.write(json.dumps({"seconds": seconds}).encode() + b"\n")
        self._input.flush()

    def answered(self) -> bool:
        """Whether the measurement has ended."""
        return bool(self._selector.select(0))

    def result(self) -> float:
        """Median microseconds of a product; waits for the end of the measurement."""
        return float(self._line("while it measured", self._seconds + _ANSWER_TIMEOUT_S)["median_us"])

    def _line(self, when: str, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            if not self._selector.select(max(deadline - time.monotonic(), 0.0)):
                raise NeighbourError(f"the neighbour said nothing for {timeout_s:g} s {when}")
            data = os.read(self._output.fileno(), 65536)
            if not data:
                raise NeighbourError(f"the neighbour ended {when}, with code {self._process.wait(10)}")
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _end(self) -> None:
        self._input.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._selector.close()
        self._output.close()


def median_product_us(device: torch.device, seconds: float) -> tuple[float, int]:
    """Median microseconds of a square bfloat16 product over batches that take `seconds` in all, and their number."""
    size = SIZES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        for _ in range(_PRODUCTS_A_BATCH):
            torch.mm(left, right, out=product)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - began) / _PRODUCTS_A_BATCH)
    return statistics.median(times) * 1e6, len(times) * _PRODUCTS_A_BATCH


def main() -> int:
    device = torch.device(sys.argv[1])
    median_product_us(device, 0.0)  # loads what it needs
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        median, products = median_product_us(device, float(json.loads(line)["seconds"]))
        print(json.dumps({"median_us": median, "products": products}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
