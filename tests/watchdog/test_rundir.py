"""The run directory belongs to one living tree, and nobody else's files are ever removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fdmoe_watchdog.rundir import RunDirectory, RunDirectoryError


def test_it_is_private_locked_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    first = RunDirectory(path)
    first.claim()
    assert path.stat().st_mode & 0o777 == 0o700
    arena = first.reserve("arena", 5000).stat()
    assert (arena.st_size, arena.st_mode & 0o777) == (5000, 0o600)
    assert arena.st_blocks * 512 >= 5000, "the memory is there, not only the name"
    with pytest.raises(RunDirectoryError, match="is in use by another tree"):
        RunDirectory(path).claim()
    assert (path / "arena").exists()
    first.release()
    assert not path.exists()


def test_what_a_killed_tree_left_is_removed(tmp_path: Path) -> None:
    killed = RunDirectory(tmp_path / "run")
    killed.claim()
    killed.reserve("arena", 10)
    (tmp_path / "run" / "folder").mkdir()
    # the lock goes with its process
    assert killed._lock is not None
    os.close(killed._lock)
    RunDirectory(tmp_path / "run").claim()
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["fdmoe.lock"]


def test_other_peoples_directories_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(mine)
    (tmp_path / "file").write_text("")
    for path, problem in (
        (mine, "has files in it and is no run directory"),
        (tmp_path / "link", "is no directory"),
        (tmp_path / "file", "File exists"),
    ):
        with pytest.raises(RunDirectoryError, match=problem):
            RunDirectory(path).claim()
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_more_than_the_file_system_has_is_an_error_at_once(in_memory: Path) -> None:
    run_dir = RunDirectory(in_memory / "run")
    run_dir.claim()
    with pytest.raises(RunDirectoryError, match=f"no room for {1 << 60} bytes on this tmpfs"):
        run_dir.reserve("arena", 1 << 60)
    run_dir.release()
