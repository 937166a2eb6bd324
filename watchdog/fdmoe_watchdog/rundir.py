"""The run directory on tmpfs: sockets, beat pages, the arena. Mode 0700; one living tree owns it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from pathlib import Path

_LOCK = "fdmoe.lock"


class RunDirectoryError(RuntimeError):
    """The run directory cannot be used; the message says why."""


class RunDirectory:
    """Made and locked by `claim`, removed by `release`. What a tree that was killed left behind is removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def claim(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_ours()
            self.path.chmod(0o700)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunDirectoryError(
                f"{self.path} is in use by another tree; stop it, or give this one its own run_dir and ports"
            ) from error
        except OSError as error:
            raise RunDirectoryError(f"{self.path}: {error.strerror}") from error
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _check_ours(self) -> None:
        """What is in it will be removed: it must be empty, or have the lock of an earlier tree."""
        status = self.path.lstat()
        problem = None
        if not stat.S_ISDIR(status.st_mode):
            problem = "is no directory"
        elif status.st_uid != os.getuid():
            problem = f"belongs to user {status.st_uid}"
        elif any(self.path.iterdir()) and not (self.path / _LOCK).is_file():
            problem = "has files in it and is no run directory"
        if problem:
            raise RunDirectoryError(f"{self.path} {problem}; choose another run_dir")

    def reserve(self, name: str, size_bytes: int) -> Path:
        """A file of mode 0600 whose memory is there: a tmpfs that is too full says so now, not by SIGBUS later."""
        path = self.path / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size_bytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise RunDirectoryError(f"{path}: no room for {size_bytes} bytes on this tmpfs") from error
        finally:
            os.close(descriptor)
        return path

    def release(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
