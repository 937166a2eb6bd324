"""The two JSON files of a model directory, config.json and the index of its shards, are objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fdmoe_ops.checkpoint.errors import CheckpointError


def read_object(path: Path, error_type: type[CheckpointError]) -> dict[str, Any]:
    """The JSON object in `path`. Raises `error_type` when there is none, FileNotFoundError when there is no file."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise error_type(f"{path}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise error_type(f"{path}: holds a JSON {type(value).__name__}; an object is needed")
    return value
