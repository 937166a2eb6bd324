"""Writes what lies beside it: `python dashboards/generate.py`, or `make dashboards`.

The dashboards need `grafana-foundation-sdk==1769699379!11.6.0` (the schema of Grafana 11.6), which only this program
uses: Grafana reads the JSON, and the JSON is checked in.
"""

from __future__ import annotations

import argparse

from fdmoe_dashboards import files
from fdmoe_dashboards.rule import RUNBOOKS


def main() -> None:
    parser = argparse.ArgumentParser(description="Write dashboards, rules and the README's table of alerts.")
    parser.add_argument(
        "--runbooks",
        default=RUNBOOKS,
        metavar="ADDRESS",
        help=f"where your people read the runbooks; in alerts and panels it takes the place of {RUNBOOKS}",
    )
    address = parser.parse_args().runbooks.rstrip("/")
    for name, text in (files.rule_files() | files.dashboard_files()).items():
        written = text.replace(f"{RUNBOOKS}/", f"{address}/")
        (files.FOLDER / name).write_text(written, encoding="utf-8")
    page = files.FOLDER / "README.md"
    page.write_text(files.readme(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
