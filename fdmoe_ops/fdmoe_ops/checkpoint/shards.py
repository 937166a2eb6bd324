"""The tensors of a model directory by name, whichever file holds them.

Looked for in transformers' order: model.safetensors; else model.safetensors.index.json and the shards that it names;
else every *.safetensors file, whose headers are then all read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from fdmoe_ops.checkpoint.errors import MissingShardError, MissingTensorError, ShardError
from fdmoe_ops.checkpoint.json_file import read_object
from fdmoe_ops.checkpoint.shard import Shard, TensorHeader

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Shards:
    """All tensors of a model directory. A file that the index names is opened when one of its tensors is asked for."""

    def __init__(self, files: Mapping[str, Path], searched: tuple[Path, ...]) -> None:
        self._files = files
        self._searched = searched
        self._opened: dict[Path, Shard] = {}

    @classmethod
    def find(cls, directory: Path) -> Shards:
        """Raises MissingShardError when no file holds weights, ShardError for a file or index that cannot be read."""
        if (directory / SINGLE).exists():
            return cls._of_files((directory / SINGLE,))
        if (directory / INDEX).exists():
            return cls(_read_index(directory / INDEX), (directory / INDEX,))
        files = tuple(sorted(directory.glob("*.safetensors")))
        if not files:
            raise MissingShardError(f"{directory}: holds no weights; {SINGLE}, {INDEX} or *.safetensors is needed")
        return cls._of_files(files)

    @classmethod
    def _of_files(cls, paths: tuple[Path, ...]) -> Shards:
        files: dict[str, Path] = {}
        opened = {path: Shard(path) for path in paths}
        for path, shard in opened.items():
            for name in shard.names:
                if name in files:
                    raise ShardError(f"{path}: tensor {name} is also in {files[name].name}, and no {INDEX} decides")
                files[name] = path
        shards = cls(files, paths)
        shards._opened = opened
        return shards

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def locate(self, name: str) -> Shard:
        """The file that holds the tensor. Raises MissingTensorError, or ShardError when it cannot be read."""
        if name not in self._files:
            searched = ", ".join(str(path) for path in self._searched)
            raise MissingTensorError(f"{searched}: no tensor {name}")
        path = self._files[name]
        if path not in self._opened:
            try:
                self._opened[path] = Shard(path)
            except MissingShardError as error:
                raise MissingShardError(f"{error}, though {INDEX} says that it holds {name}") from error
        shard = self._opened[path]
        if name not in shard.names:
            raise MissingTensorError(f"{path}: no tensor {name}, though {INDEX} says so")
        return shard

    def header(self, name: str) -> TensorHeader:
        return self.locate(name).header(name)

    def view(self, name: str) -> torch.Tensor:
        return self.locate(name).view(name)


def _read_index(path: Path) -> dict[str, Path]:
    """Tensor name to file, from {"weight_map": {tensor name: file name}}."""
    weight_map = read_object(path, ShardError).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ShardError(f"{path}: weight_map is a JSON {type(weight_map).__name__}; an object is needed")
    for name, file in weight_map.items():
        # the index comes with the download: it must not lead out of its directory
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ShardError(f"{path}: weight_map has {name} in {file!r}; a .safetensors file beside it is needed")
    return {name: path.parent / file for name, file in weight_map.items()}
