"""config.json as values of a known type: each reader checks one key and names file, key, value and what is allowed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fdmoe_ops.checkpoint.errors import ConfigError
from fdmoe_ops.checkpoint.json_file import read_object

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Key(Generic[T]):
    """A key of config.json, its other name, and the value that transformers takes where the file leaves it out."""

    name: str
    default: T
    alias: str | None = None


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The values of config.json. All readers raise ConfigError."""

    path: Path
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> ConfigFile:
        """Raises ConfigError when `path` is absent or holds no JSON object."""
        try:
            return cls(path, read_object(path, ConfigError))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: not found; every Hugging Face model directory has one") from error

    def find(self, key: Key[T]) -> tuple[str, Any]:
        """The value, unchecked, and the name under which it stands in the file."""
        given = [name for name in (key.name, key.alias) if name in self.values]
        if not given:
            return key.name, key.default
        found = {name: self.values[name] for name in given}
        if found[given[0]] != found[given[-1]]:
            raise ConfigError(f"{self.path}: {json.dumps(found)}; these two names of one value must agree")
        return given[0], found[given[0]]

    def count(self, key: Key[int]) -> int:
        """An integer of at least 1."""
        name, value = self.find(key)
        # bool is a subclass of int
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, value, "an integer of at least 1 is needed")
        return value

    def flag(self, key: Key[bool]) -> bool:
        name, value = self.find(key)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false is needed")
        return value

    def indices(self, key: Key[tuple[int, ...]]) -> tuple[int, ...]:
        """A list of integers; null is the default."""
        name, value = self.find(key)
        if value is None:
            return key.default
        if not isinstance(value, list | tuple) or not all(type(index) is int for index in value):
            raise self.error(name, value, "a list of layer indices is needed")
        return tuple(value)

    def error(self, name: str, value: object, needed: str) -> ConfigError:
        return ConfigError(f"{self.path}: {name} is {json.dumps(value)}; {needed}")
