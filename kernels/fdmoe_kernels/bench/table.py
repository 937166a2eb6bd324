"""The Markdown table of a result: every cell beside the best peer and the torch baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fdmoe_kernels.bench.peers import DTYPE
from fdmoe_kernels.bench.rows import Row

_HEADER = (
    "| model | tokens | mode | one launch, us | back to back, us | best peer, us | ratio | torch baseline, us | "
    "ratio | of the floor | TFLOP/s | GB/s | beats | operations | error |\n"
    "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
_NONE = "–"


def markdown_table(rows: Sequence[Row]) -> str:
    """A line a cell, in the rows' order, and a paragraph with the geometric mean."""
    return "\n".join([_HEADER, *map(_line, rows), "", summary(rows)]) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """The geometric mean of best peer / one launch over the graph cells that have a peer, and how many lose: beside the
    baseline, and back to back with itself."""
    cells = [row for row in rows if row.mode == "graph" and row.best_peer_us is not None]
    if not cells:
        return "No graph cell has a peer to compare with."
    mean, slower = _against_peers(cells, [row.latency_us for row in cells])
    steady_mean, steady_slower = _against_peers(cells, [row.steady_us for row in cells])
    return (
        f"Against the best peer of each of the {len(cells)} graph cells: {mean:.2f} times as fast in the geometric "
        f"mean, slower in {slower} of them; launched back to back, without the baseline in between, "
        f"{steady_mean:.2f} and {steady_slower}."
    )


def _against_peers(cells: Sequence[Row], times_us: Sequence[float]) -> tuple[float, int]:
    ratios = [(row.best_peer_us or math.nan) / time_us for row, time_us in zip(cells, times_us, strict=True)]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)), sum(ratio < 1 for ratio in ratios)


def _line(row: Row) -> str:
    model = row.model if row.dtype == DTYPE else f"{row.model}, {row.dtype}"
    peer = _NONE if row.best_peer_us is None else f"{row.best_peer_us:.1f} {row.best_peer}"
    cells = (
        model,
        str(row.tokens),
        row.mode,
        f"{row.latency_us:.1f}",
        f"{row.steady_us:.1f}",
        peer,
        _ratio(row.best_peer_ratio),
        _NONE if row.baseline_us is None else f"{row.baseline_us:.1f}",
        _ratio(row.speedup),
        f"{row.floor_share:.0%}",
        f"{row.tflops:.1f}",
        f"{row.weight_gbps:.0f}",
        f"{row.beats_share:+.1%}",
        str(row.operations),
        f"{row.relative_error:.1e}",
    )
    return "| " + " | ".join(cells) + " |"


def _ratio(ratio: float | None) -> str:
    return _NONE if ratio is None else f"{ratio:.2f}"
