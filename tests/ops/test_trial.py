"""The trial kernel tells a device that does not compute from one whose memory somebody else has."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fdmoe_ops.worker.errors import DeviceBroken
from fdmoe_ops.worker.trial import run_trial

CPU = torch.device("cpu")
# what is mapped may stay, and nothing larger than a megabyte may come
STARVED = """
import resource, torch
from pathlib import Path
from fdmoe_ops.worker.trial import run_trial
mapped_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + (1 << 20), resource.RLIM_INFINITY))
try:
    run_trial(torch.device("cpu"))
except RuntimeError as error:
    print(type(error).__name__, "not enough memory" in str(error) or "can't allocate memory" in str(error))
"""


def test_a_device_that_adds_up_right_has_passed() -> None:
    run_trial(CPU)


def test_a_process_without_memory_condemns_no_device() -> None:
    done = subprocess.run(
        (sys.executable, "-P", "-c", STARVED), capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "RuntimeError True\n", done.stdout + done.stderr


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "CUDA driver error: out of memory"])
def test_a_gpu_without_room_for_a_context_is_not_broken(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(torch, "arange", _failing(text))
    with pytest.raises(RuntimeError, match=text) as caught:
        run_trial(CPU)
    assert not isinstance(caught.value, DeviceBroken)


def test_any_other_failure_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "arange", _failing("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceBroken, match="a trial kernel on cpu failed: CUDA error: an illegal memory access"):
        run_trial(CPU)


def test_a_wrong_sum_is_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "arange", lambda *_, **__: torch.zeros(3))
    with pytest.raises(DeviceBroken, match="a trial kernel on cpu found 0; 549755289600 is right"):
        run_trial(CPU)


def _failing(text: str):
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError(text)

    return fail
