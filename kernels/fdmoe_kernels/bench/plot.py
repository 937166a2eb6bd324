"""The picture of a result: latency over tokens, a panel a model, with matplotlib (the extra `plot`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fdmoe_kernels.bench.peers import Mode
from fdmoe_kernels.bench.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")


class PlotError(RuntimeError):
    """The picture cannot be drawn; the message says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel: which rows, which of their numbers, how it looks."""

    label: str
    mode: Mode
    value: Callable[[Row], float | None]
    style: dict[str, Any]


LINES = (
    Line(
        "torch baseline, graph",
        "graph",
        lambda row: row.baseline_us,
        {"color": "#b45f06", "marker": "s", "markersize": 4, "linewidth": 1.4},
    ),
    Line(
        "best peer, graph",
        "graph",
        lambda row: row.best_peer_us,
        {"color": "#38761d", "marker": "^", "markersize": 5, "linewidth": 1.4},
    ),
    Line(
        "one launch, eager",
        "eager",
        lambda row: row.latency_us,
        {"color": "#6fa8dc", "marker": "o", "markersize": 4, "linewidth": 1.4, "linestyle": "--"},
    ),
    Line(
        "one launch, graph",
        "graph",
        lambda row: row.latency_us,
        {"color": "#0b5394", "marker": "o", "markersize": 5, "linewidth": 2.2},
    ),
    Line("floor", "graph", lambda row: row.floor_us, {"color": "#666666", "linestyle": ":", "linewidth": 1.6}),
)


def points(rows: Sequence[Row], model: str, line: Line) -> tuple[list[int], list[float]]:
    """Token counts and values of one line, by rising tokens, where the rows have a value."""
    found = sorted(
        (row.tokens, value)
        for row in rows
        if row.model == model and row.mode == line.mode and (value := line.value(row)) is not None
    )
    return [tokens for tokens, _ in found], [value for _, value in found]


def draw(rows: Sequence[Row], paths: Sequence[Path]) -> None:
    """Write the picture of `rows` to each of `paths`; the suffix chooses the format.

    Raises PlotError without matplotlib, for no rows, for rows of several devices or versions, and another suffix.
    """
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise PlotError(f"{path} ends in {path.suffix!r}; one of {SUFFIXES} is needed")
    picture = figure(rows)
    for path in paths:
        picture.savefig(path, dpi=160)


def figure(rows: Sequence[Row]) -> Figure:
    """A log-log panel for each model of the first row's dtype."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
    except ModuleNotFoundError as error:
        raise PlotError("matplotlib is not installed; pip install 'fdmoe-kernels[plot]'") from error
    if not rows:
        raise PlotError("there are no rows to draw")
    machines = sorted({(row.device, row.versions) for row in rows})
    if len(machines) > 1:
        raise PlotError(f"the rows are of {machines}; one device and one set of versions is needed")
    dtype = rows[0].dtype
    rows = [row for row in rows if row.dtype == dtype]
    models = list(dict.fromkeys(row.model for row in rows))
    picture = Figure(figsize=(max(8.5, 4.6 * len(models)), 4.9), layout="constrained")
    panels = picture.subplots(1, len(models), squeeze=False)[0]
    drawn: dict[str, Any] = {}
    for panel, model in zip(panels, models, strict=True):
        for line in LINES:
            tokens, values = points(rows, model, line)
            if values:
                drawn[line.label] = panel.plot(tokens, values, label=line.label, **line.style)[0]
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        ticks = sorted({row.tokens for row in rows if row.model == model})
        panel.set_xticks(ticks, [f"{tick}" for tick in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(True, which="major", color="#cccccc", linewidth=0.7)
        panel.set_title(model, fontsize=11)
        panel.set_xlabel("tokens")
    panels[0].set_ylabel("latency of the whole layer, µs")
    device, versions = machines[0]
    picture.suptitle(f"One MoE layer, {dtype}, medians with a cold L2, on {device} ({versions})", fontsize=11)
    labels = [line.label for line in reversed(LINES) if line.label in drawn]
    picture.legend(
        [drawn[label] for label in labels], labels, loc="outside lower center", ncols=len(labels), frameon=False
    )
    return picture
