"""The watchdog's child processes: a worker generation with its page and channel, a spare that becomes one, a holder of
weights, any other."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from fdmoe_watchdog.channel import Channel
from fdmoe_watchdog.messages import Blame, WeightsReady, WorkerReady
from fdmoe_watchdog.page import Line, PageError, PageFile, Snapshot
from fdmoe_watchdog.policy import Check, Seen
from fdmoe_watchdog.proc import SLEEPS, STOPPED, StatFile, asleep
from fdmoe_watchdog.tracker import Tracker

# who has been silent for so long is looked at: the state of one that works is nobody's question
ASKED_S = 0.03


def spawn(
    command: tuple[str, ...],
    environment: Mapping[str, str],
    stdin: int = subprocess.DEVNULL,
    pass_fds: tuple[int, ...] = (),
) -> subprocess.Popen[bytes]:
    """Start a child in a process group of its own: a terminal's Ctrl-C is for the watchdog alone to handle.

    Call it from the main thread: the child's parent-death signal is tied to the thread that started it.
    """
    return subprocess.Popen(
        command,
        env={**os.environ, **environment, "FDMOE_WATCHDOG_PID": str(os.getpid())},
        stdin=stdin,
        pass_fds=pass_fds,
        process_group=0,
    )


class _Lasting:
    """For how long something has been so at each look."""

    def __init__(self) -> None:
        self._since: float | None = None

    @property
    def lasts(self) -> bool:
        return self._since is not None

    def seen(self, so: bool, now_s: float) -> float:
        if not so:
            self._since = None
            return 0.0
        if self._since is None:
            self._since = now_s
        return now_s - self._since


class Child:
    """One started process, or `process`, which has been started already. `alive` reaps it."""

    def __init__(
        self,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        *,
        stdin: int = subprocess.DEVNULL,
        pass_fds: tuple[int, ...] = (),
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.started_at = time.monotonic()
        self._process = process or spawn(command, environment, stdin, pass_fds)
        self._stat = StatFile(self._process.pid)
        self._held = _Lasting()
        self.channel: Channel | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    @property
    def stopped(self) -> bool:
        """Whether a signal holds it (SIGSTOP and its like, no debugger), as far as /proc tells."""
        return self._stat.read().state == STOPPED

    @property
    def ending(self) -> bool:
        """Whether its end has begun, as far as /proc tells. A process with a CUDA context takes some tenths of a second
        from then until its sockets close and it can be reaped."""
        return self._stat.read().exiting

    def held_s(self, now_s: float, silent_s: float = math.inf) -> float:
        """How long it has been so, as far as it was looked at: not while it was silent for a moment only. `now_s` is of
        one clock for all calls."""
        return self._held.seen(silent_s >= ASKED_S and self.stopped, now_s)

    @property
    def sleeps(self) -> bool:
        """Whether its main thread waits for something, as far as /proc tells."""
        return self._stat.read().state == SLEEPS

    @property
    def asleep(self) -> bool:
        """Whether all its threads do, of one that has not been reaped."""
        return asleep(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        """To the process; SIGKILL also to whatever it has started, such as a compiler."""
        if self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended by then."""
        try:
            self._process.wait(max(timeout_s, 0.0))
        except subprocess.TimeoutExpired:
            return False
        return True


class HolderProcess(Child):
    """One generation of the process that holds a device's weights.

    ready_ns    when it said that it has them (CLOCK_MONOTONIC)
    held_until  when a signal was last seen to hold it, on the caller's clock; None if that was not told
    cut_off     "exit" once its end has begun
    """

    def __init__(
        self, name: str, generation: int, *, command: tuple[str, ...], environment: Mapping[str, str], run_dir: Path
    ) -> None:
        self.name, self.generation = name, generation
        self._run_dir = run_dir
        self.ready: WeightsReady | None = None
        self.failed: tuple[str, Blame] | None = None
        self.ready_ns = 0
        self.held_until: float | None = None
        self.cut_off: Literal["", "exit"] = ""
        super().__init__((*command, "--name", name, "--generation", str(generation)), environment)

    def discard(self) -> None:
        """Remove what a reaped generation left in the run directory; what workers have mapped stays mapped."""
        for path in self._run_dir.glob(f"{self.name}-g{self.generation}[-.]*"):
            path.unlink(missing_ok=True)


class Spare(Child):
    """`command` gets `--spare FD` behind it: it writes a byte to FD once it has imported everything, and reads the rest
    of its arguments from its standard input."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        self._told = os.fdopen(ours, "rb", buffering=0)
        self._ready = False
        try:
            super().__init__((*command, "--spare", str(theirs)), environment, stdin=subprocess.PIPE, pass_fds=(theirs,))
        except OSError:
            self._told.close()
            raise
        finally:
            os.close(theirs)

    @property
    def ready(self) -> bool:
        """Whether it has said so."""
        if not self._ready and not self._told.closed:
            self._ready = bool(self._told.read(1))
        return self._ready

    def become(self, arguments: tuple[str, ...]) -> subprocess.Popen[bytes] | None:
        """Send it to work; its process, which is somebody else's child from now on, or None if it has ended."""
        pipe = self._process.stdin
        assert pipe is not None
        try:
            with self._told, pipe:
                # far less than a pipe takes at once, whatever the other end does
                pipe.write(json.dumps(arguments).encode() + b"\n")
        except BrokenPipeError:
            return None
        return self._process

    def discard(self) -> None:
        """It has ended, and becomes nothing."""
        pipe = self._process.stdin
        assert pipe is not None
        self._told.close()
        pipe.close()


class WorkerProcess(Child):
    """One generation of a worker. The watchdog makes the page, so that it can be read whatever the worker does.

    ready, failed  what it said of its start
    by_spare       whether a process that was kept for it became it
    checks, slow   comparisons of the paths reported since the last turn, and whether the fused one was said to be slow
    cut_off        why nothing of it can be relied on any more, "" if it can
    page_problem   what is wrong with its page, "" if nothing is
    """

    def __init__(
        self,
        name: str,
        generation: int,
        *,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        weights: str,
        run_dir: Path,
        slots: int,
        tracker: Tracker,
        take_spare: Callable[[], Spare | None] = lambda: None,
    ) -> None:
        self.name, self.generation = name, generation
        self.socket_path = run_dir / f"worker-{name}-g{generation}.sock"
        self.stacks_path = run_dir / f"worker-{name}-g{generation}.stacks"
        self.page = PageFile.create(run_dir / f"worker-{name}-g{generation}.page", generation=generation, slots=slots)
        self.tracker = tracker
        self.ready: WorkerReady | None = None
        self.failed: tuple[str, Blame] | None = None
        self.checks: list[Check] = []
        self.slow = False
        self.cut_off: Literal["", "exit", "page", "unreachable"] = ""
        self.page_problem = ""
        self._blocked, self._calm = _Lasting(), _Lasting()
        arguments = ("--weights", weights, "--name", name, "--generation", str(generation))
        try:
            # only now: one that is taken for a page that is not to be had would be lost
            spare = take_spare()
            process = spare.become(arguments) if spare is not None else None
            self.by_spare = process is not None
            super().__init__((*command, *arguments), environment, process=process)
        except OSError:
            self.page.close()
            self.page.path.unlink()
            raise

    def read_page(self) -> Snapshot | None:
        """What the page says now; once it is no page any more, what it said last."""
        if not self.page_problem:
            try:
                return self.page.snapshot()
            except (PageError, OSError) as error:
                self.page_problem, self.cut_off = str(error), "page"
        return self.tracker.last

    def abort(self, launch: int) -> None:
        """Tell the kernel of this launch to end. Where the page cannot be written, the deadline does the rest."""
        with contextlib.suppress(OSError):
            self.page.write(Line.ABORT, 0, launch)

    def seen(self) -> Seen:
        """What the ladder is told of it this turn; its comparisons are told once."""
        checks, self.checks = tuple(self.checks), []
        slow, self.slow = self.slow, False
        tracker, ready = self.tracker, self.ready
        return Seen(
            alive=self.alive,
            ready=ready is not None,
            launch=tracker.serving_launch(),
            ended=tracker.last.ended if tracker.last is not None else 0,
            quiet_s=tracker.quiet_s,
            stall_after_s=tracker.stall_after_s(),
            untouched_s=tracker.untouched_s,
            host_still_s=tracker.host_still_s,
            blocked_s=self._blocked_s(),
            held_s=self._held_s(),
            trial_s=tracker.trial_s,
            checks=checks,
            slow=slow,
            fused=ready is not None and ready.fused,
            cut_off=self.cut_off,
            failed=self.failed,
        )

    def _held_s(self) -> float:
        silent_s, last = self.tracker.untouched_s, self.tracker.last
        held_s = self.held_s(self.tracker.clock_s, silent_s)
        # one that has a batch works on it, and beats: of its silence before the first look a look's worth counts
        works = self.ready is not None and last is not None and last.waiting
        return min(silent_s, held_s + ASKED_S) if works and self._held.lasts else held_s

    def _blocked_s(self) -> float:
        now_s, last = self.tracker.clock_s, self.tracker.last
        idle = self.tracker.host_still_s >= ASKED_S and last is not None and not last.host_waits
        slept_s = self._blocked.seen(idle and self.sleeps, now_s)
        # a driver's thread that wakes for a moment does nothing that the main thread waits for; one that is at work is
        # so at one of two looks
        calm_s = self._calm.seen(slept_s > 0 and self.asleep, now_s)
        return slept_s if calm_s > 0 else 0.0

    def discard(self) -> None:
        """Remove what a reaped generation left in the run directory."""
        self.page.close()
        for path in self.page.path.parent.glob(f"worker-{self.name}-g{self.generation}.*"):
            path.unlink(missing_ok=True)
