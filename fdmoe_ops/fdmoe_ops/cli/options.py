"""The options of the settings tree and their three spellings: flag, environment variable, YAML key."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from fdmoe_ops.settings import Settings

ENVIRONMENT_PREFIX = "FDMOE_"
NESTED_DELIMITER = "__"


@dataclass(frozen=True)
class Option:
    """A leaf of the settings tree: `keys` is its path, ("gateway", "port") or ("devices",)."""

    keys: tuple[str, ...]
    field: FieldInfo

    @property
    def key(self) -> str:
        return ".".join(self.keys)

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + NESTED_DELIMITER.join(self.keys).upper()

    @property
    def flag(self) -> str:
        name = "-".join(self.keys).replace("_", "-")
        return f"--enable-{name}" if self.is_switch else f"--{name}"

    @property
    def off_flag(self) -> str:
        """The flag that turns a switch off; only switches have one."""
        assert self.is_switch, self.key
        return self.flag.replace("--enable-", "--disable-")

    @property
    def is_switch(self) -> bool:
        return self.field.annotation is bool

    @property
    def spellings(self) -> str:
        flags = f"{self.flag}/{self.off_flag}" if self.is_switch else self.flag
        return f"{flags}, {self.variable}, or {self.key} in the YAML file"

    @property
    def placeholder(self) -> str:
        """What help shows in the place of a value."""
        kinds = _kinds(self.field.annotation)
        enums = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, StrEnum)]
        if enums:
            return "|".join(enums[0])
        if self.keys[-1].endswith("_s"):
            return "SECONDS"
        names: dict[Any, str] = {int: "NUMBER", float: "NUMBER", ByteSize: "BYTES", Path: "PATH"}
        return next((names[kind] for kind in kinds if kind in names), self.keys[-1].upper())

    def value_in(self, tree: BaseModel) -> Any:
        value: Any = tree
        for key in self.keys:
            value = getattr(value, key)
        return value


def all_options(tree: type[BaseModel] = Settings, above: tuple[str, ...] = ()) -> Iterator[Option]:
    """Every leaf, in the tree's own order."""
    for name, field in tree.model_fields.items():
        keys = (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from all_options(field.annotation, keys)
        else:
            yield Option(keys, field)


def _kinds(annotation: Any) -> list[Any]:
    """The types of a union's members, or the type itself, without None."""
    members = typing.get_args(annotation) or (annotation,)
    return [member for member in members if member is not NoneType]
