"""What limits each cell, beside its goal: a Markdown table of a result and of the profile of the same cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fdmoe_kernels.bench.profiling import ProfileRow
from fdmoe_kernels.bench.rows import Row

_HEADER = (
    "| model | tokens | best peer | of the floor | beats | of us | begin, us | end, us | DRAM in between | "
    "tensor cores | L2 | GHz | W | warps wait for |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|"
)
# the most that beats may cost
BEATS = 0.01
_NONE = "–"


def goal(tokens: int) -> float | None:
    """The share of the floor that a batch is to reach; None where none is set."""
    if tokens == 1:
        return 0.6
    if 16 <= tokens <= 256:
        return 0.9
    return 0.8 if tokens >= 4096 else None


def limits_table(rows: Sequence[Row], profiled: Sequence[ProfileRow]) -> str:
    """A line for each graph cell of `rows` that has a peer; what misses its goal is in bold type."""
    profile = {(row.model, row.tokens): row for row in profiled}
    cells = [row for row in rows if row.mode == "graph" and row.best_peer_ratio is not None]
    return "\n".join([_HEADER, *(_line(row, profile) for row in cells)]) + "\n"


def _line(row: Row, profile: Mapping[tuple[str, int], ProfileRow]) -> str:
    assert row.best_peer_us is not None, "a cell with a ratio has a peer"
    # a ratio that is rounded hides who is behind by less than that
    ratio = _bold(f"{row.best_peer_ratio:.3f}", row.latency_us > row.best_peer_us)
    found = profile.get((row.model, row.tokens))
    seen = [_NONE] * 8 if found is None else _seen(found)
    beats = _bold(f"{row.beats_share:+.1%}", row.beats_share > BEATS)
    cells = [row.model, str(row.tokens), ratio, _floor(row), beats, *seen]
    cells.insert(-1, _NONE if row.power_w is None else str(row.power_w))
    return "| " + " | ".join(cells) + " |"


def _seen(found: ProfileRow) -> list[str]:
    return [
        f"{found.duration_us:.0f}",
        f"{found.begin_us:.0f}",
        f"{found.end_us:.0f}",
        f"{found.dram_read_flowing:.0%}",
        f"{found.tensor_flowing:.0%}",
        f"{found.l2_share:.0%}",
        f"{found.sm_ghz:.2f}",
        found.stalls,
    ]


def _floor(row: Row) -> str:
    wanted = goal(row.tokens)
    share = f"{row.floor_share:.1%}"
    return share if wanted is None else _bold(f"{share} / {wanted:.0%}", row.floor_share < wanted)


def _bold(text: str, missed: bool) -> str:
    return f"**{text}**" if missed else text
