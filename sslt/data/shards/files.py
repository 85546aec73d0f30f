"""The shards of an entry as files of this machine's disk, each compared with its digest once a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sslt.data import cache
from sslt.data.shards.writing import digest_of, file_name
from sslt.errors import UserError

FETCHED = 4  # shards at a time


class ShardFiles:
    """The files of one array of an entry. Raises `UserError` for a shard that is not as it was written."""

    def __init__(self, entry: cache.Entry, name: str):
        self.folder, self.name = entry.path, name
        about = entry.meta["shards"][name]
        self.bytes: list[int] = about["bytes"]
        self.digests: list[str] = about["digests"]

    def __len__(self) -> int:
        return len(self.digests)

    def path(self, number: int) -> Path:
        """Where shard `number` can be read."""
        path = self.folder / file_name(self.name, number)
        # one process of a machine reads it to the end, and the others trust it, as with all entries
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self._check(path, number)
        return path

    def fetch(self, numbers: Sequence[int]) -> None:
        """Have these shards ready to be read."""
        with ThreadPoolExecutor(FETCHED) as pool:
            list(pool.map(self.path, numbers))

    def _check(self, path: Path, number: int) -> None:
        try:
            stat = path.stat()
            identity = (str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if cache.was_checked(identity):
                return
            damage = None if digest_of(path) == self.digests[number] else "not as it was written"
        except FileNotFoundError:
            damage = "gone"
        if damage is not None:
            path.unlink(missing_ok=True)  # what is missing is made again by whoever opens the entry next
            raise UserError(f"{path} is {damage}: the same command again, or resume=RUN, prepares this shard anew and goes on")
        cache.note_checked(identity)
