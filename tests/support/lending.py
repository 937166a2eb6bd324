"""A holder of weights in a process of its own, started as the watchdog starts it, and a watchdog that listens to it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from fdmoe_ops.settings import LogFormat, LogSettings, ModelSettings, Settings, WorkerSettings, write
from fdmoe_watchdog.channel import Channel, Listener
from fdmoe_watchdog.messages import Hello

DEADLINE_S = 60.0


def settings_for(
    model: Path, run_dir: Path, *, dtype: str = "float32", layers: str = "all", device: str = "cpu"
) -> Settings:
    """A resolved tree; here a CPU may serve what it cannot compute."""
    return Settings(
        model=ModelSettings(path=model, name="tiny", layers=layers, dtype=dtype),
        devices=(device,), run_dir=run_dir, worker=WorkerSettings(max_batch_tokens=4),
        log=LogSettings(format=LogFormat.JSON),
    )  # fmt: skip


class Parent:
    """The watchdog: starts children over one run directory and hears what they say."""

    def __init__(self, settings: Settings) -> None:
        assert settings.run_dir is not None
        self.run_dir, self._device = settings.run_dir, settings.devices[0]
        write(settings, self.run_dir / "settings.json")
        self._listener = Listener(self.run_dir / "watchdog.sock")
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, module: str, *arguments: str) -> Child:
        command = [
            sys.executable, "-P", "-m", module, "--settings", str(self.run_dir / "settings.json"), *arguments
        ]  # fmt: skip
        path = os.pathsep.join(sys.path[1:])
        environment = {**os.environ, "PYTHONPATH": path, "FDMOE_WATCHDOG_PID": str(os.getpid())}
        process = subprocess.Popen(command, env=environment)
        self._children.append(process)
        assert select.select([self._listener], [], [], DEADLINE_S)[0], f"{module} does not connect"
        channel = self._listener.accept()
        assert channel is not None
        return Child(process, channel)

    def start_holder(self, generation: int = 1) -> Child:
        return self.start(
            "fdmoe_ops.weights", "--device", self._device, "--name", "weights", "--generation", str(generation)
        )

    def stop(self) -> None:
        for process in self._children:
            process.kill()
            process.wait(DEADLINE_S)
        self._listener.close()


class Child:
    def __init__(self, process: subprocess.Popen[bytes], channel: Channel) -> None:
        self.process, self.channel = process, channel
        hello = self.hear()
        assert isinstance(hello, Hello)
        self.hello = hello

    def hear(self) -> Any:
        """The next message. Raises ChannelClosed when the child has closed its side."""
        while (message := self._receive()) is None:
            pass
        return message

    def _receive(self) -> Any:
        assert select.select([self.channel], [], [], DEADLINE_S)[0], "the child says nothing"
        return self.channel.receive()
