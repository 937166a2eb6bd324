"""Builds kept on disk, in `$FDMOE_CACHE_DIR` or else `~/.cache/fdmoe`.

    layer-<of what it was made>.cubin    32 bytes: SHA-256 of what follows | the cubin

A file that is not whole counts as none, and is written anew.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_DIGEST_BYTES = hashlib.sha256().digest_size


def path_of(made_of: object) -> Path:
    """Where the build made of `made_of` is kept; its repr tells builds apart."""
    digest = hashlib.sha256(repr(made_of).encode()).hexdigest()[:32]
    # without a home (a container's user may have none) the variable of that name is all there is
    directory = Path(os.environ.get("FDMOE_CACHE_DIR") or os.path.expanduser("~/.cache/fdmoe"))
    return directory / f"layer-{digest}.cubin"


def read(path: Path) -> bytes | None:
    """The build, or None if there is none that is whole."""
    try:
        kept = path.read_bytes()
    except OSError:
        return None
    digest, cubin = kept[:_DIGEST_BYTES], kept[_DIGEST_BYTES:]
    return cubin if hashlib.sha256(cubin).digest() == digest else None


def write(path: Path, cubin: bytes) -> None:
    """Keep the build where the next process finds it; a disk that does not take it costs only that."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(hashlib.sha256(cubin).digest() + cubin)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise
    except OSError:
        return
