"""`fdmoe config show`: the values that `fdmoe serve` would use with the same flags, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer
import yaml

from fdmoe_ops.cli.options import all_options
from fdmoe_ops.cli.sources import Loaded
from fdmoe_ops.devices import find_devices
from fdmoe_ops.settings import Settings, resolve


class Format(StrEnum):
    YAML = "yaml"
    JSON = "json"


def show(
    loaded: Loaded,
    output: Annotated[
        Format, typer.Option("--format", help="yaml says in comments where values come from.")
    ] = Format.YAML,
) -> None:
    """Print the effective settings: what `fdmoe serve` would use with the same flags."""
    settings = resolve(loaded.settings, tuple(find_devices(loaded.settings.devices)))
    if output is Format.JSON:
        typer.echo(settings.model_dump_json(indent=2))
    else:
        typer.echo("\n".join(yaml_lines(settings, loaded)))


def yaml_lines(settings: Settings, loaded: Loaded) -> Iterator[str]:
    """A settings file that says the same; a comment tells what is not a default."""
    values = settings.model_dump(mode="json")
    group = ""
    for option in all_options():
        *groups, name = option.keys
        if groups and groups[0] != group:
            group = groups[0]
            yield f"{group}:"
        value = values[group][name] if groups else values[name]
        yield f"{'  ' * len(groups)}{name}: {_one_line(value)}{_comment(settings, loaded, option.key)}"


def _comment(settings: Settings, loaded: Loaded, key: str) -> str:
    if key in loaded.origins:
        return f"  # from {loaded.origins[key]}"
    option = next(option for option in all_options() if option.key == key)
    if option.value_in(settings) != option.value_in(loaded.settings):
        return f"  # resolved for {', '.join(settings.devices)}"
    return ""


def _one_line(value: object) -> str:
    """A value as YAML on one line. PyYAML ends a document that is a lone scalar with "...", and a list's item not."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]
