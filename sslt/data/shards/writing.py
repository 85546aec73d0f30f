"""Shards of an entry that is being made, each whole or not there: a preparation that was killed goes on behind the last one."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import cache


def file_name(name: str, number: int) -> str:
    """Where shard `number` of the array `name` is, below an entry's folder."""
    return f"{cache.SHARDS}/{name}-{number:06}.npy"


class Writer:
    """Writes the shards of one array into `folder`. `rows`: rows of each but the last; `shape` and `dtype`: of a row."""

    def __init__(self, folder: Path, name: str, rows: int, shape: tuple[int, ...], dtype: Any):
        self.folder, self.name, self.rows, self.shape, self.dtype = folder, name, rows, shape, np.dtype(dtype)
        (folder / cache.SHARDS).mkdir(exist_ok=True)

    def has(self, number: int) -> bool:
        """Whether shard `number` was put here before."""
        note = self._note(number)
        return note is not None and self._is_there(number, int(note["bytes"]))

    def put(self, number: int, rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Write shard `number`. columns: name → [n, ...], what is told of its rows and kept for all of them together."""
        path = self.folder / file_name(self.name, number)
        size, digest = write_array(path, rows)
        buffer = io.BytesIO()
        told = {"digest": np.array(digest), "bytes": np.array(size), **{f"column_{k}": v for k, v in columns.items()}}
        np.savez(buffer, **told)  # type: ignore[arg-type]
        _replace(self._note_path(number), buffer.getvalue())  # last: a shard counts from its note on

    def finish(self, count: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What an entry's meta holds of the array (`ShardedRows` reads it), and the columns of all rows."""
        shards = -(-count // self.rows)
        notes = [note for number in range(shards) if (note := self._note(number)) is not None]
        assert len(notes) == shards, "every shard was put"
        names = [k for k in notes[0] if k.startswith("column_")]
        columns = {k.removeprefix("column_"): np.concatenate([note[k] for note in notes]) for k in names}
        about = {
            "count": count,
            "rows": self.rows,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            "bytes": [int(note["bytes"]) for note in notes],
            "digests": [str(note["digest"]) for note in notes],
        }
        return about, columns

    def _is_there(self, number: int, size: int) -> bool:
        with contextlib.suppress(OSError):
            return (self.folder / file_name(self.name, number)).stat().st_size == size
        return False

    def _note_path(self, number: int) -> Path:
        return self.folder / cache.SHARDS / f"{self.name}-{number:06}.npz"

    def _note(self, number: int) -> dict[str, np.ndarray] | None:
        try:
            with np.load(self._note_path(number)) as file:
                return {k: file[k] for k in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None


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


def _replace(path: Path, content: bytes) -> None:
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tmp.write_bytes(content)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
