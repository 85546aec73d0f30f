"""Files whose digest is known as they are written."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np


class _Hashed:
    """A file that knows the digest of what was written into it."""

    def __init__(self, file: Any):
        self.file, self.hash, self.size = file, hashlib.blake2b(digest_size=10), 0

    def write(self, data: Any) -> None:
        self.hash.update(data)
        self.size += len(data)
        self.file.write(data)


def write_array(path: Path, rows: np.ndarray) -> tuple[int, str]:
    """Write a .npy file whole or not at all; returns its bytes and their digest."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with tmp.open("wb") as file:
            hashed = _Hashed(file)
            np.lib.format.write_array(hashed, np.ascontiguousarray(rows), allow_pickle=False)  # type: ignore[arg-type]
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    return hashed.size, hashed.hash.hexdigest()


def digest_of(path: Path) -> str:
    """The digest of a file's bytes as `write_array` gives it."""
    found = hashlib.blake2b(digest_size=10)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()
