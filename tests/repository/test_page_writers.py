"""Each line of the beat page has one writer: what no lock guards must be so by construction."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKER = "fdmoe_ops/fdmoe_ops/worker/"
WRITERS = {
    "IDENTITY": WORKER,
    "ABORT": "watchdog/fdmoe_watchdog/process.py",
    "LAUNCH": WORKER,
    "HOST": WORKER,
    "GATEWAY": "fdmoe_ops/fdmoe_ops/gateway/",
}  # EXIT and the slots are the kernel's, which knows no Line


def _written(path: Path) -> Iterator[str]:
    """The lines that are named in calls of a page's `write` and `add`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("write", "add"):
            match node.args:
                case [ast.Attribute(value=ast.Name(id="Line"), attr=name), *_]:
                    yield name


def test_each_line_is_written_in_one_place() -> None:
    found: dict[str, set[str]] = {}
    for folder in ("fdmoe_ops", "kernels", "watchdog"):
        for path in (ROOT / folder).rglob("*.py"):
            for line in _written(path):
                found.setdefault(line, set()).add(str(path.relative_to(ROOT)))
    assert found.keys() == WRITERS.keys()
    for line, paths in found.items():
        assert all(path.startswith(WRITERS[line]) for path in paths), f"{line} is written by {sorted(paths)}"
