"""What every child of the watchdog does first."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel send SIGKILL to this process when its parent ends, and exit at once if it has ended already.

    Call it first of all. Ctrl-C in a terminal reaches the whole process group: it is the watchdog's to handle, so
    SIGINT is ignored here. Raises OSError where prctl is refused.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    expected = os.environ.get("FDMOE_WATCHDOG_PID")
    if os.getppid() != parent or (expected is not None and int(expected) != parent):
        # the watchdog ended before the line above could take effect
        sys.exit(0)
