"""Shards of an entry that is being made, each whole or not there: a preparation that was killed goes on behind the last one."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import cache, entries
from sslt.data.shards.files import file_name
from sslt.data.shards.hashed import write_array
from sslt.data.shards.kept import adopt


class Writer:
    """Writes the shards of one array into `folder`. `rows`: rows of each but the last; `shape` and `dtype`: of a row."""

    def __init__(self, folder: Path, name: str, rows: int, shape: tuple[int, ...], dtype: Any):
        self.folder, self.name, self.rows, self.shape, self.dtype = folder, name, rows, shape, np.dtype(dtype)
        (folder / cache.SHARDS).mkdir(exist_ok=True)
        self.store, self.entry = cache.store(), f"{folder.parent.name}/{folder.name.removeprefix('.part-')}"
        self._there = set() if self.store is None else set(self.store.names(f"{self.entry}/{cache.SHARDS}"))

    def has(self, number: int) -> bool:
        """Whether shard `number` was put here before."""
        name, note_path = file_name(self.name, number), self._note_path(number)
        if self.store is None:
            note = self._note(number)
            return note is not None and entries.has_size(self.folder / name, int(note["bytes"]))
        if not {Path(name).name, note_path.name} <= self._there:
            return False
        if self._note(number) is None:  # another machine has put it
            with contextlib.suppress(FileNotFoundError):
                self.store.get(f"{self.entry}/{cache.SHARDS}/{note_path.name}", note_path)
        return self._note(number) is not None

    def put(self, number: int, rows: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """Write shard `number`. columns: name → [n, ...], what is told of its rows and kept for all of them together."""
        name = file_name(self.name, number)
        size, digest = write_array(self.folder / name, rows)
        if self.store is not None:
            self.store.put(self.folder / name, f"{self.entry}/{name}")
            adopt(self.folder / name, f"{self.entry}/{name}")
        buffer = io.BytesIO()
        told = {"digest": np.array(digest), "bytes": np.array(size), **{f"column_{k}": v for k, v in columns.items()}}
        np.savez(buffer, **told)  # type: ignore[arg-type]
        cache.write_atomic(self._note_path(number), buffer.getvalue())  # last: a shard counts from its note on
        if self.store is not None:
            self.store.put(self._note_path(number), f"{self.entry}/{cache.SHARDS}/{self._note_path(number).name}")
            self._there |= {Path(name).name, self._note_path(number).name}

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

    def _note_path(self, number: int) -> Path:
        return self.folder / cache.SHARDS / f"{self.name}-{number:06}.npz"

    def _note(self, number: int) -> dict[str, np.ndarray] | None:
        try:
            with np.load(self._note_path(number)) as file:
                return {k: file[k] for k in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
