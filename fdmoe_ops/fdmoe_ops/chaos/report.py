"""The report of a game day: a CSV for machines, a JSON document, and a page with plots for people.

`python -P -m fdmoe_ops.chaos.report FILE.csv` prints README's table of it; with a second name the page is written
there, as for days that were played in several parts.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fdmoe_ops.chaos.catalogue import FAULTS
from fdmoe_ops.chaos.plays import PLAYS
from fdmoe_ops.chaos.result import Result
from fdmoe_ops.chaos.soak import Soaked
from fdmoe_ops.version import version

_TIMES = ("p50", "p99", "max")
_COUNTS = ("repetitions", "seconds", "requests", "failed", "wrong", "sent_again", "replayed")


def machine() -> dict[str, str]:
    """What every row says about where it was measured."""
    import torch
    import triton

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    versions = {
        "python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__,
        "fdmoe-ops": version(),
    }  # fmt: skip
    return {"device": device, "versions": " ".join(f"{name} {of}" for name, of in versions.items())}


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that at least this share of all is not above."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def row(result: Result, **more: str) -> dict[str, Any]:
    """One line of the CSV; times in milliseconds, empty where the fault has none."""
    fault = next(fault for fault in FAULTS if fault.name == result.play.name)
    columns: dict[str, Any] = {
        "fault": fault.name,
        "place": fault.place.name.lower(),
        "repetitions": result.repetitions,
        "seconds": round(result.seconds),
        "requests": len(result.sent),
        "failed": sum(bool(sent.failed) for sent in result.sent),
        "wrong": sum(sent.wrong for sent in result.sent),
        "sent_again": sum(bool(sent.retries) for sent in result.sent),
        "replayed": sum(sent.replayed for sent in result.sent),
    }
    for name, values in (("detect", result.detect_s), ("answer", result.answer_s), ("restart", result.restart_s)):
        for time, share in zip(_TIMES, (0.5, 0.99, 1.0), strict=True):
            columns[f"{name}_{time}_ms"] = round(percentile(values, share) * 1e3, 1) if values else ""
    columns["final_path"] = result.final_path
    columns["ok"] = "yes" if result.ok else "no"
    columns["notes"] = "; ".join(f"{name} {count}" for name, count in sorted(result.notes.items()))
    columns["problem"] = "; ".join(result.unmet).replace("\n", " ")[:500]
    return columns | more


def write(directory: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    """game-day.csv, .json and .html, whole each time they are written. Raises OSError."""
    write_csv(directory / "game-day.csv", rows)
    written = {
        "game-day.json": json.dumps(list(rows), indent=1) + "\n",
        "game-day.html": page(rows),
    }
    for name, content in written.items():
        (directory / name).write_text(content)
    return [directory / name for name in ("game-day.csv", *written)]


def read_csv(path: Path) -> list[dict[str, Any]]:
    """The rows of such a CSV as `row` makes them."""
    with path.open(newline="") as file:
        return [{name: _value(name, text) for name, text in values.items()} for values in csv.DictReader(file)]


def _value(name: str, text: str) -> Any:
    if name in _COUNTS:
        return int(text) if text else ""
    return float(text) if name.endswith("_ms") and text else text


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Makes the directory, too. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def soak_row(soaked: Soaked, **more: str) -> dict[str, Any]:
    """The one line of a soak's CSV."""
    return {
        "seconds": round(soaked.seconds),
        "requests": len(soaked.sent),
        "failed": sum(bool(sent.failed) for sent in soaked.sent),
        "wrong": sum(sent.wrong for sent in soaked.sent),
        "false_alarms": len(soaked.alarms),
        "alarms": "; ".join(sorted({str(event["event"]) for event in soaked.alarms})),
        "phases": "; ".join(f"{name} {count}" for name, count in soaked.phases.items()),
    } | more


def page(rows: Sequence[dict[str, Any]]) -> str:
    """One HTML document without outside parts, in the reader's own light or dark."""
    hidden = {"place", "problem", "versions", "command", "device"}
    if len({row.get("commit") for row in rows}) == 1:
        hidden.add("commit")
    shown = [name for name in rows[0] if name not in hidden]
    head = "".join(f"<th scope=col>{html.escape(name.replace('_', ' '))}</th>" for name in shown)
    body = "".join(_table_row(row, shown) for row in rows)
    bad = sum(row["ok"] == "no" for row in rows)
    lost, wrong = sum(row["failed"] for row in rows), sum(row["wrong"] for row in rows)
    allowed = sum(row["wrong"] for row in rows if PLAYS[row["fault"]].wrong)
    commands = {str(row.get("command", "")) for row in rows}
    words = (
        f"{len(rows)} faults, {sum(row['repetitions'] for row in rows)} injections, "
        f"{sum(row['requests'] for row in rows)} requests: {lost} lost, {wrong} wrong"
        + (f", {allowed} of them by the faults that only a comparison can find" if allowed else "")
        + ". "
        + ("Every fault came to what it must come to." if not bad else f"{bad} did not come to what they must.")
    )
    return _PAGE.format(
        words=html.escape(words),
        where=html.escape(f"{rows[0].get('device', '')}; {rows[0].get('versions', '')}"),
        command=html.escape(commands.pop() if len(commands) == 1 else f"{len(commands)} commands, which the CSV has"),
        head=head,
        body=body,
        plot=_plot(rows),
    )


def _table_row(row: dict[str, Any], shown: Sequence[str]) -> str:
    cells = "".join(f"<td>{html.escape(str(row[name]))}</td>" for name in shown)
    problem = f"<tr class=no><td></td><td colspan={len(shown) - 1}>{html.escape(row['problem'])}</td></tr>"
    return f'<tr class="{row["ok"]}">{cells}</tr>' + (problem if row["problem"] else "")


def _plot(rows: Sequence[dict[str, Any]]) -> str:
    """Detection and answer, worst of each fault, as an SVG element; "" where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    timed = [row for row in rows if row["answer_max_ms"] != ""][::-1]
    figure = Figure(figsize=(9, 0.32 * len(timed) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(timed))
    axes.barh([at + 0.2 for at in places], [row["answer_max_ms"] for row in timed], 0.38, label="answer, worst")
    detect = [row["detect_max_ms"] or 0 for row in timed]
    axes.barh([at - 0.2 for at in places], detect, 0.38, label="detection, worst")
    axes.set_yticks(list(places), [row["fault"] for row in timed])
    axes.set_xscale("log")
    axes.set_xlabel("ms")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>fdmoe game day</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ margin: 2rem auto; max-width: 75rem; padding: 0 1rem }}
div {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }}
th, td {{ padding: .2rem .4rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }}
tr.no td {{ color: #d33; font-weight: 600 }}
figure {{ background: #fff; margin: 1.5rem 0; padding: .5rem; overflow-x: auto }}
</style>
<h1>Game day</h1>
<p>{words}</p>
<p><small>{where}<br><code>{command}</code></small></p>
<figure role=img aria-label="Worst times of detection and answer of each fault">{plot}</figure>
<div><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
</html>
"""


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The CSV's rows in Markdown, as README has them; restarts are shown if any was measured."""
    times = ["detect", "answer", *(["restart"] if any(row["restart_p50_ms"] for row in rows) else [])]
    lines = [
        "| fault | times | requests | lost | wrong | sent again | replayed "
        + "".join(f"| {name} p50 / p99, ms " for name in times)
        + "| serves in the end |",
        "|---|" + "--:|" * (6 + len(times)) + "---|",
    ]
    for row in rows:
        measured = " | ".join(
            f"{float(row[f'{name}_p50_ms']):.0f} / {float(row[f'{name}_p99_ms']):.0f}" if row[f"{name}_p50_ms"] else ""
            for name in times
        )
        counts = " | ".join(
            str(row[name]) for name in ("repetitions", "requests", "failed", "wrong", "sent_again", "replayed")
        )
        lines.append(f"| `{row['fault']}` | {counts} | {measured} | {row['final_path']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    read = read_csv(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(page(read))
    print(table(read), end="")
