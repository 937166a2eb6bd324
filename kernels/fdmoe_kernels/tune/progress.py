"""What the user sees of a search: one line that is written over on a terminal, a line a cell elsewhere."""

from __future__ import annotations

from typing import TextIO

_WIDTH = 20


class Progress:
    """`cells` is how many there are in all."""

    def __init__(self, file: TextIO, cells: int) -> None:
        self._file, self._cells = file, cells
        self._over = file.isatty()
        self._length = 0

    def show(self, done: int, cell: str, tried: int, best: float, left_s: float) -> None:
        """best: time of the cell's best row over that of its first."""
        if self._over:
            filled = _WIDTH * done // self._cells
            bar = "#" * filled + "." * (_WIDTH - filled)
            self._rewrite(f"[{bar}] {done}/{self._cells} {cell}: {tried} tried, {best:.3f}, {left_s:.0f} s left")

    def line(self, text: str) -> None:
        """A line that stays."""
        self._rewrite(text)
        self._file.write("\n")
        self._file.flush()
        self._length = 0

    def _rewrite(self, text: str) -> None:
        if self._over:
            self._file.write("\r" + text.ljust(self._length))
            self._length = len(text)
        else:
            self._file.write(text)
        self._file.flush()
