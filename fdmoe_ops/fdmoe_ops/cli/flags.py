"""Command-line flags made from the settings tree, so that an option is written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from fdmoe_ops.cli.options import Option, all_options
from fdmoe_ops.cli.sources import load
from fdmoe_ops.devices import DeviceError
from fdmoe_ops.settings import Settings, SettingsError

EPILOG = "Every option is also a variable and a YAML key: --gateway-port, FDMOE_GATEWAY__PORT, gateway: {port: ...}."
MISUSE = 2  # the exit code of a command line that cannot be used


def fail(message: str, code: int) -> typer.Exit:
    """Print the message to standard error; raise what this returns."""
    for line in message.splitlines():
        typer.echo(f"error: {line}", err=True)
    return typer.Exit(code)


def with_settings(
    command: Callable[..., None], *, only: Collection[str] | None = None, group: str | None = None
) -> Callable[..., None]:
    """`command(loaded, ...)` as a command with a flag per option of the tree (those of `only`, by key) and --config.
    Options of `group` may be given without its name, too: --url for --grafana-url.

    Settings that cannot be used end it with exit code 2 and a line for each.
    """
    options = [option for option in all_options() if only is None or option.key in only]
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        flags = {option.keys: arguments.pop(_parameter_name(option)) for option in options}
        given = {keys: value for keys, value in flags.items() if value is not None}
        try:
            command(load(given, arguments.pop("config")), **arguments)
        except (SettingsError, DeviceError) as error:
            raise fail(str(error), MISUSE) from error

    parameters = [*own, _config_parameter(), *(_parameter(option, group) for option in options)]
    # positional parameters of the command itself come by name too: typer calls with keywords only
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _parameter_name(option: Option) -> str:
    return "_".join(option.keys)


def _parameter(option: Option, group: str | None) -> inspect.Parameter:
    kind = bool if option.is_switch else str
    info = typer.Option(
        *_flags(option, group),
        help=f"{option.field.description} {_default(option)}".strip(),
        metavar=None if option.is_switch else option.placeholder,
        rich_help_panel=_panel(option),
        show_default=False,
    )
    return _keyword(_parameter_name(option), Annotated[kind | None, info])


def _flags(option: Option, group: str | None) -> tuple[str, ...]:
    if option.is_switch:
        return (f"{option.flag}/{option.off_flag}",)
    if group is None or option.keys[0] != group:
        return (option.flag,)
    return (Option(option.keys[1:], option.field).flag, option.flag)


def _config_parameter() -> inspect.Parameter:
    info = typer.Option("--config", envvar="FDMOE_CONFIG", metavar="FILE", help="YAML file with settings.")
    return _keyword("config", Annotated[Path | None, info])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _panel(option: Option) -> str | None:
    if len(option.keys) == 1:
        return None
    group = option.keys[0]
    return f"{group}: {Settings.model_fields[group].description}"


def _default(option: Option) -> str:
    default = option.field.default
    if default is None or option.is_switch:
        return ""
    return f"(default: {','.join(default) if isinstance(default, tuple) else default})"
