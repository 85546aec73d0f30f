"""The shards of an entry as files of this machine's disk, each compared with its digest once a run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sslt.data import cache, sharding
from sslt.data.entries import SHARDS
from sslt.data.shards.hashed import digest_of
from sslt.data.shards.kept import kept
from sslt.errors import UserError

log = logging.getLogger("sslt")

FETCHED = 4  # shards at a time
_OPENED = 20  # times that a file which is made room for is asked for
_ANEW = "the same command again, or resume=RUN, prepares this shard anew and goes on"
_warned: set[str] = set()


def file_name(name: str, number: int) -> str:
    """Where shard `number` of the array `name` is, below an entry's folder."""
    return f"{SHARDS}/{name}-{number:06}.npy"


class ShardFiles:
    """The files of one array of an entry. Raises `UserError` for a shard that is not as it was written."""

    def __init__(self, entry: cache.Entry, name: str):
        self.folder, self.name, self.store = entry.path, name, cache.store()
        self.entry = f"{entry.path.parent.name}/{entry.path.name}"  # its name in the store
        about = entry.meta["shards"][name]
        self.bytes: list[int] = about["bytes"]
        self.digests: list[str] = about["digests"]

    def __len__(self) -> int:
        return len(self.digests)

    def path(self, number: int) -> Path:
        """Where shard `number` can be read, on this machine's disk. One of a store may be gone when it is opened: ask again then."""
        if self.store is not None:
            return kept(self.store, f"{self.entry}/{file_name(self.name, number)}", self.bytes[number], self.digests[number])
        path = self.folder / file_name(self.name, number)
        # one process of a machine reads it to the end, and the others trust it, as with all entries
        if os.environ.get("LOCAL_RANK", "0") == "0":
            self._check(path, number)
        return path

    def open(self, number: int) -> tuple[Path, int]:
        """Shard `number` and a descriptor of it, to be closed by the caller."""
        for _ in range(_OPENED):
            path = self.path(number)
            try:
                return path, os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                if self.store is None:
                    raise UserError(f"{path} is gone: {_ANEW}") from None
                continue  # it made room for another
        raise UserError(f"{path} is gone whenever it is opened: raise shards.keep_bytes")

    def fetch(self, numbers: Sequence[int]) -> None:
        """Have these shards ready to be read."""
        self._warn([self.bytes[number] for number in numbers])
        with ThreadPoolExecutor(FETCHED) as pool:
            list(pool.map(self.path, numbers))

    def _warn(self, window: Sequence[int]) -> None:
        """Say once where what is kept does not hold what is read now and what is fetched ahead."""
        limits = sharding.limits()
        if self.store is not None and limits is not None and 2 * sum(window) > limits.keep_bytes and self.store.url not in _warned:
            _warned.add(self.store.url)
            log.warning(
                "shards.keep_bytes=%d holds less than two windows of shards (%d bytes): shards are fetched several times an epoch",
                limits.keep_bytes, 2 * sum(window),
            )  # fmt: skip

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
            raise UserError(f"{path} is {damage}: {_ANEW}")
        cache.note_checked(identity)
