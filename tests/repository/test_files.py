"""What is checked in says nothing of the machine it was written on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# a home or work directory with something in it, at the beginning of a path
MACHINE_PATH = re.compile(rb"(?<![\w.~/}$-])/(home|root|Users|work)/\w[^\s\"'`]*")


def _tracked_files() -> list[Path]:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    command = ("git", "-C", str(ROOT), "ls-files", "-z")
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip("this source tree is no git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name]


def test_no_path_of_a_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match[0].decode()}"
        for file in _tracked_files()
        if file.is_file()
        for match in MACHINE_PATH.finditer(file.read_bytes())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (b"see /%s/me/model" % b"home", True),
        (b'"/%s/main/x.py"' % b"work", True),
        (b"https://example.org/home/page", False),
        (b"~/work/model", False),
        (b"/home", False),
    ],
)
def test_what_counts_as_a_path_of_a_machine(text: bytes, is_one: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_one
