"""config.json as values of a known type: each reader checks one key and names file, key, value and what is allowed."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from fdmoe_ops.checkpoint.errors import ConfigError
from fdmoe_ops.checkpoint.json_file import read_object

T = TypeVar("T", covariant=True)


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

    def count(self, key: Key[int | None], *, least: int = 1) -> int:
        """An integer of at least `least`. A key whose default is None must be in the file."""
        name, value = self.find(key)
        # bool is a subclass of int
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(name, value, f"an integer of at least {least} is needed")
        return value

    def number(self, key: Key[float]) -> float:
        """A finite number above 0."""
        name, value = self.find(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.error(name, value, "a finite number above 0 is needed")
        return float(value)

    def only_default(self, key: Key[object], meaning: str) -> None:
        """Raises ConfigError unless the value is the default, which means `meaning`."""
        name, value = self.find(key)
        if value != key.default:
            raise self.error(name, value, f"only {json.dumps(key.default)} can be served: it means {meaning}")

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
