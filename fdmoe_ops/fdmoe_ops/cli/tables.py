"""The look of tables: without lines between the columns, which leaves 80 characters to nine of them."""

from __future__ import annotations

from rich.table import Table


def plain_table(title: str | None = None) -> Table:
    return Table(
        title=f"\n{title}" if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
    )
