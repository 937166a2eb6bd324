"""Clients that never pause: each sends requests with known answers, one after another, and judges what comes back."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from fdmoe_kernels import MoELayer, reference_moe
from fdmoe_kernels.comparing import close_calls, difference, tolerance
from fdmoe_ops.chaos.target import Known, Target
from fdmoe_ops.settings import SettingsError

DATATYPES = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}
_POOL = 32
_DRAWS = 20
RETRY_S = 0.02  # the pause before a request is sent again


@dataclass(frozen=True)
class Pool:
    """Requests of 1 to `max_tokens` tokens, as bytes, and their answers in float32."""

    layer: str
    datatype: str
    hidden_size: int
    inputs: tuple[bytes, ...]
    expected: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, name: str, layer: MoELayer, max_tokens: int) -> Pool:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(1, max_tokens + 1, (_POOL,), generator=generator).tolist()
        x = _clear_tokens(layer, sum(tokens), generator)
        # rows do not know of each other, and the weights are turned into float32 once
        expected = torch.split_with_sizes(reference_moe(x, layer), tokens)
        inputs = (rows.view(torch.uint8).numpy().tobytes() for rows in torch.split_with_sizes(x, tokens))
        return cls(name, DATATYPES[layer.dtype], layer.hidden_size, tuple(inputs), tuple(expected))

    @functools.cached_property
    def target(self) -> Target:
        """With the smallest request, which those who are many can judge."""
        index = min(range(len(self.inputs)), key=lambda index: len(self.inputs[index]))
        known = Known(self.expected[index].shape[0], self.inputs[index], lambda output: self.is_wrong(index, output))
        return Target(self.layer, self.datatype, self.hidden_size, known)

    def request(self, index: int) -> tuple[bytes, dict[str, str]]:
        """Body and headers of request `index`."""
        return self.target.request(self.expected[index].shape[0], self.inputs[index])

    def is_wrong(self, index: int, output: bytes) -> bool:
        expected = self.expected[index]
        dtype = next(dtype for dtype, name in DATATYPES.items() if name == self.datatype)
        if len(output) != expected.numel() * dtype.itemsize:
            return True
        found = torch.frombuffer(bytearray(output), dtype=dtype)
        return not difference(found.view_as(expected), expected).within(tolerance(dtype))


def _clear_tokens(layer: MoELayer, count: int, generator: torch.Generator) -> torch.Tensor:
    """Random tokens [T, H] whose experts no rounding decides: for others there are two right answers. Raises
    SettingsError for a router that decides hardly any token's."""
    found = torch.empty(0, layer.hidden_size, dtype=layer.dtype)
    for _ in range(_DRAWS):
        x = torch.randn(count, layer.hidden_size, generator=generator).to(layer.dtype)
        found = torch.cat([found, x[~close_calls(x, layer)]])
        if found.shape[0] >= count:
            return found[:count]
    raise SettingsError(
        f"of {_DRAWS * count} random tokens {found.shape[0]} go to experts that the model's router tells apart; "
        f"{count} are needed to know right answers from wrong ones"
    )


@dataclass(slots=True)
class Sent:
    """One request: start and end by the monotonic clock, s; which path answered; how often it had to be sent again for
    a connection that broke or a 503; `failed` says why it was never answered."""

    start: float
    end: float
    path: str = ""
    replayed: bool = False
    retries: int = 0
    failed: str = ""
    wrong: bool = False


@dataclass
class Load:
    """`clients` threads that send until told to stop. A request is given up after `patience_s`."""

    address: str
    pool: Pool
    clients: int
    patience_s: float = 60.0
    sent: list[Sent] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        picks = np.random.default_rng(seed)
        connection = http.client.HTTPConnection(self.address, timeout=self.patience_s)
        with contextlib.closing(connection):
            while not self._stop.is_set():
                self.sent.append(self._one(connection, int(picks.integers(len(self.pool.inputs)))))

    def _one(self, connection: http.client.HTTPConnection, index: int) -> Sent:
        body, headers = self.pool.request(index)
        sent = Sent(time.monotonic(), 0.0)
        while True:
            try:
                connection.request("POST", f"/v2/models/{self.pool.layer}/infer", body, headers)
                answer = connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                problem = f"{type(error).__name__}: {error}"
            else:
                if answer.status == 200:
                    break
                problem = f"{answer.status}: {data[:200].decode(errors='replace')}"
                if answer.status != 503:
                    sent.failed = problem
                    break
            sent.retries += 1
            if time.monotonic() - sent.start >= self.patience_s or self._stop.wait(RETRY_S):
                sent.failed = problem
                break
        sent.end = time.monotonic()
        if not sent.failed:
            size = int(answer.headers["Inference-Header-Content-Length"])
            parameters = json.loads(data[:size])["parameters"]
            sent.path, sent.replayed = parameters["fdmoe_path"], parameters["fdmoe_replayed"]
            sent.wrong = self.pool.is_wrong(index, data[size:])
        return sent
