"""The commands of `fdmoe` and what each is called with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fdmoe_ops.cli import chaos, dashboards
from fdmoe_ops.cli.config import show
from fdmoe_ops.cli.flags import EPILOG, MISUSE, fail, with_settings
from fdmoe_ops.cli.flight import FLIGHT_OPTIONS, list_records, show_record
from fdmoe_ops.cli.serve import serve
from fdmoe_ops.cli.status import status
from fdmoe_ops.client import RUN_DIRECTORY_OPTIONS
from fdmoe_ops.version import version

app = typer.Typer(
    name="fdmoe",
    help="Serve mixture-of-experts layers that run as one GPU kernel, watch them, and recover when they stall.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True)
app.add_typer(config_app, name="config")
flight_app = typer.Typer(help="Read what was recorded when workers failed.", no_args_is_help=True)
app.add_typer(flight_app, name="flight")

app.command(epilog=EPILOG)(with_settings(serve))
app.command(epilog=EPILOG)(with_settings(status, only=RUN_DIRECTORY_OPTIONS))
app.add_typer(chaos.app, name="chaos")
app.add_typer(dashboards.app, name="dashboards")
config_app.command(epilog=EPILOG)(with_settings(show))
flight_app.command("list", epilog=EPILOG)(with_settings(list_records, only=FLIGHT_OPTIONS))
flight_app.command("show", epilog=EPILOG)(with_settings(show_record, only=FLIGHT_OPTIONS))


@app.command()
def demo_model(
    directory: Annotated[Path, typer.Argument(help="Directory to be made; it must be empty or not exist.")],
) -> None:
    """Write a tiny, real Qwen3-MoE checkpoint."""
    # numpy comes with it, and the other commands do without
    from fdmoe_ops.demo import write_demo_model

    try:
        write_demo_model(directory)
    except (OSError, ValueError) as error:
        raise fail(str(error), MISUSE) from error
    typer.echo(f"wrote {directory}")


@app.command("version")
def show_version() -> None:
    """Print the version."""
    typer.echo(f"fdmoe {version()}")
