"""`fdmoe dashboards push|diff|list`: this project's dashboards in a Grafana."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from fdmoe_ops.cli.flags import EPILOG, MISUSE, fail, with_settings
from fdmoe_ops.cli.options import all_options
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.cli.tables import plain_table
from fdmoe_ops.grafana import dashboards, extra, token
from fdmoe_ops.grafana.dashboards import Dashboard
from fdmoe_ops.grafana.errors import GrafanaError
from fdmoe_ops.grafana.patience import Patience
from fdmoe_ops.settings import SettingsError

if TYPE_CHECKING:
    from fdmoe_ops.grafana.provision import Found, Provisioner, Pushed

DIFFERENT = 1  # the exit code where something differs, or was not overwritten
GRAFANA_OPTIONS = tuple(option.key for option in all_options() if option.keys[0] == "grafana")
STATE_STYLES = {"same": "green", "missing": "yellow", "differs": "yellow"}

Directory = Annotated[
    Path | None,
    typer.Option("--directory", metavar="DIR", help="Dashboards (*.json) to use in the place of our own."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(help="Keep this project's dashboards in a Grafana.", no_args_is_help=True)


def command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        with_options = with_settings(function, only=GRAFANA_OPTIONS, group="grafana")
        app.command(name, epilog=EPILOG)(with_options)
        return with_options

    return register


@command("push")
def push(
    loaded: Loaded,
    directory: Directory = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also replace dashboards that somebody has edited in Grafana.")
    ] = False,
) -> None:
    """Make the folder, check the data source, and bring the dashboards up to date.

    Ends with 1 if one was edited in Grafana and left as it is.
    """
    with _at_work(loaded, directory) as (provisioner, ours):
        made = provisioner.provide_folder()
        pushed = [provisioner.push(dashboard, overwrite=overwrite) for dashboard in ours]
    folder = f"the folder {loaded.settings.grafana.folder_uid}"
    if made:
        typer.echo(f"created    {folder}")
    for one in pushed:
        typer.echo(f"{one.outcome:<10} {one.found.dashboard.uid}  {one.url or provisioner.url(one.found)}")
    if not made and all(one.outcome == "unchanged" for one in pushed):
        typer.echo("nothing has changed")
    _refuse(one for one in pushed if one.outcome == "refused")


def _refuse(refused: Iterable[Pushed]) -> None:
    lines = [f"{one.found.dashboard.uid} is left as it is: {one.reason}" for one in refused]
    if lines:
        lines.append("`fdmoe dashboards diff` shows what --overwrite would replace")
        raise fail("\n".join(lines), DIFFERENT)


@command("diff")
def diff(loaded: Loaded, directory: Directory = None) -> None:
    """Show what a push would change, as a diff of each dashboard. Ends with 1 if there is anything."""
    with _at_work(loaded, directory) as (provisioner, ours):
        found = [provisioner.look(dashboard) for dashboard in ours]
    different = [one for one in found if one.state != "same"]
    for one in different:
        for line in provisioner.difference(one):
            typer.echo(line)
    if different:
        raise typer.Exit(DIFFERENT)
    typer.echo("nothing differs")


@command("list")
def show(loaded: Loaded, directory: Directory = None, as_json: AsJson = False) -> None:
    """List the dashboards and what Grafana has of each. Without --url, those that would be pushed."""
    if loaded.settings.grafana.url is None:
        rows = [_row(dashboard) for dashboard in dashboards.find(directory or dashboards.own_directory())]
    else:
        with _at_work(loaded, directory) as (provisioner, ours):
            rows = [_row_of(provisioner, provisioner.look(dashboard)) for dashboard in ours]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    table = plain_table()
    for heading in rows[0]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        cells = ("-" if cell is None else str(cell) for cell in row.values())
        table.add_row(*(Text(cell, style=STATE_STYLES.get(cell, "")) for cell in cells))
    # wider than a terminal, for an address that is cut or folded cannot be copied
    console = Console(highlight=False, width=1000)
    console.print(table, width=console.measure(table).maximum)


def _row(dashboard: Dashboard) -> dict[str, Any]:
    return {"uid": dashboard.uid, "title": dashboard.title}


def _row_of(provisioner: Provisioner, found: Found) -> dict[str, Any]:
    return {
        "folder": found.meta.get("folderTitle") or None,
        "uid": found.dashboard.uid,
        "title": found.dashboard.title,
        "version": found.version,
        "state": found.state.value,
        "url": provisioner.url(found),
    }


@contextmanager
def _at_work(loaded: Loaded, directory: Path | None) -> Iterator[tuple[Provisioner, list[Dashboard]]]:
    """The dashboards as they are to be in the Grafana of the settings, which has been checked. Ends with 2 where it
    cannot be asked or refuses."""
    settings = loaded.settings.grafana
    if settings.url is None:
        spellings = next(option.spellings for option in all_options() if option.key == "grafana.url")
        raise SettingsError(f"grafana.url is not set; the address of a Grafana is needed [--url, {spellings}]")
    extra.require()
    # here, so that everything else does without the extra
    from fdmoe_ops.grafana.api import Grafana
    from fdmoe_ops.grafana.provision import Provisioner

    ours = dashboards.find(directory or dashboards.own_directory())
    grafana = Grafana(settings, token.read_token(settings))
    if warning := token.exposure(settings):
        _warn(warning)
    provisioner = Provisioner(grafana, settings, Patience(settings.deadline_s), _warn)
    try:
        provisioner.check_version()
        source = provisioner.data_source()
        if source is not None:
            ours = tuple(dashboards.opened_with(one, str(source["uid"]), str(source["name"])) for one in ours)
        if settings.runbooks_url is not None:
            ours = tuple(dashboards.with_runbooks_at(one, settings.runbooks_url) for one in ours)
        yield provisioner, list(ours)
    except GrafanaError as error:
        raise fail(str(error), MISUSE) from error


def _warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)
