"""Settings from where people write them: flags, over FDMOE_* variables, over a YAML file, over the defaults."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from fdmoe_ops.cli.options import ENVIRONMENT_PREFIX, NESTED_DELIMITER, all_options
from fdmoe_ops.settings import Settings, SettingsError

Tree = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A validated tree, and the source of each value that is not a default, by key ("gateway.port")."""

    settings: Settings
    origins: Mapping[str, str]


class _Environment(Settings, BaseSettings):
    """The tree with the names of its variables. Never built: only read by pydantic-settings' own source."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX,
        env_nested_delimiter=NESTED_DELIMITER,
        env_ignore_empty=True,
        enable_decoding=False,  # values are the same text as after a flag, not JSON
    )


def load(flags: Mapping[tuple[str, ...], object], config: Path | None) -> Loaded:
    """Merge and validate. `flags`: option keys -> value as it was typed. Raises SettingsError with a line per value."""
    sources: dict[str, Tree] = {}
    if config is not None:
        sources[str(config)] = _read_yaml(config)
    sources["the environment"] = _read_environment()
    sources["a flag"] = _nested(flags)
    merged: Tree = {}
    for tree in sources.values():
        merged = _merge(merged, tree)
    origins = {
        key: name
        for name, tree in sources.items()  # the last one that has a value is the one that won
        for key in _leaves(tree)
    }
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(e, origins) for e in error.errors())) from error
    return Loaded(settings, origins)


def _read_yaml(file: Path) -> Tree:
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{file} holds a {type(tree).__name__}; groups of options are needed, as in `gateway:`")
    # a group whose options are all commented out reads as null
    return {key: {} if value is None and _is_group(str(key)) else value for key, value in tree.items()}


def _read_environment() -> Tree:
    for variable in os.environ:
        first, delimiter, _ = variable.removeprefix(ENVIRONMENT_PREFIX).partition(NESTED_DELIMITER)
        if variable.startswith(ENVIRONMENT_PREFIX) and delimiter and not _is_group(first.lower()):
            groups = ", ".join(name for name in Settings.model_fields if _is_group(name))
            raise SettingsError(f"{variable} is set, and {first.lower()} is no group of options; there are: {groups}")
    return EnvSettingsSource(_Environment)()


def _is_group(name: str) -> bool:
    field = Settings.model_fields.get(name)
    return field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _nested(flags: Mapping[tuple[str, ...], object]) -> Tree:
    tree: Tree = {}
    for keys, value in flags.items():
        branch = tree
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
        branch[keys[-1]] = value
    return tree


def _merge(below: Tree, above: Tree) -> Tree:
    both = {key: _merge(below[key], above[key]) for key in below.keys() & above.keys() if _are_trees(below, above, key)}
    return below | above | both


def _are_trees(below: Tree, above: Tree, key: str) -> bool:
    return isinstance(below[key], dict) and isinstance(above[key], dict)


def _leaves(tree: Tree, above: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in tree.items():
        key = f"{above}{name}"
        keys += _leaves(value, f"{key}.") if isinstance(value, dict) else [key]
    return keys


def _explain(error: ErrorDetails, origins: Mapping[str, str]) -> str:
    """One line: the option, the value found, where it comes from, what is allowed, how the option is spelled."""
    key = ".".join(str(part) for part in error["loc"])
    origin = origins.get(key) or next((name for leaf, name in origins.items() if leaf.startswith(f"{key}.")), "")
    source = f" (from {origin})" if origin else ""
    if error["type"] == "extra_forbidden":
        return f"{key}{source} is no option.{_suggest(key)}"
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"]
    option = next((option for option in all_options() if option.key == key), None)
    spelled = f" [{option.spellings}]" if option else ""
    return f"{key} is {error['input']!r}{source}: {reason[:1].lower()}{reason[1:]}{spelled}"


def _suggest(key: str) -> str:
    group = key.rpartition(".")[0]
    known = [option.key for option in all_options()]
    siblings = [k for k in known if k.rpartition(".")[0] == group] if group else list(Settings.model_fields)
    close = difflib.get_close_matches(key, known, n=1)
    meant = f" Did you mean {close[0]}?" if close else ""
    return f"{meant} There are: {', '.join(siblings)}"
