"""A finished entry of the cache, and the checksums that tell whether it is as it was written."""

from __future__ import annotations

import json
import logging
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sslt import stored

log = logging.getLogger("sslt")

BLOCK = 16 << 20  # bytes that one checksum is of
THREADS = min(8, os.cpu_count() or 1)  # more read no faster than memory does
TOLD = 20 << 30  # bytes of an entry from which on its checking is worth a line
SHARDS = "shards"  # key of meta.json, and the folder they are in
SUMS = "checksums"  # key of meta.json


class Entry:
    """A finished entry: `entry["name"]` memory-maps an array, `entry.meta` is its JSON.

    Raises `UserError`, `OSError` or `ValueError` where its `meta.json` is damaged or not there.
    """

    def __init__(self, path: Path):
        self.path = path
        self.meta: dict[str, Any] = json.loads(stored.text(path / "meta.json", largest=1 << 30))
        if not isinstance(self.meta, dict):
            raise ValueError("meta.json holds no object")
        self.sums: dict[str, list[int]] | None = self.meta.pop(SUMS, None)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.load(self.path / f"{name}.npy", mmap_mode="r")

    def __contains__(self, name: str) -> bool:
        return (self.path / f"{name}.npy").exists()

    def damage(self) -> str | None:
        """What is wrong with it: None if every byte is as it was written."""
        if not isinstance(self.sums, dict) or self.sums.get("meta.json") != [own_sum(self.meta, self.sums)]:
            return "meta.json is damaged"
        if self.size > TOLD:
            log.info("checking %.0f GB of prepared data in %s", self.size / 1e9, self.path)
        for name, wanted in self.sums.items():
            if name != "meta.json" and (found := sums_of(self.path / name)) != wanted:
                bad = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), None)
                where = "its length" if bad is None else f"block {bad + 1} of {len(wanted)}"
                return f"{name} is not as it was written ({where})"
        return None

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(stat.st_size for stat in self._stats())

    def files(self) -> list[str]:
        """Names of its files but for meta.json and shards. Raises `ValueError` for one that is not below it."""
        names = [name for name in self.sums or {} if name != "meta.json"]
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in names):
            raise ValueError("meta.json names files that are no part of the entry")
        return names

    def missing(self) -> list[str]:
        """Those of its shards that are not there, or of another size than they were written with."""
        return [name for name, size in self.shards().items() if not has_size(self.path / name, size)]

    def shards(self) -> dict[str, int]:
        """File → bytes of all its shards."""
        arrays = self.meta.get("shards") or {}
        return {f"{SHARDS}/{a}-{i:06}.npy": n for a, about in arrays.items() for i, n in enumerate(about["bytes"])}

    def identity(self) -> tuple[Any, ...]:
        """What tells this entry from another one in its place."""
        return str(self.path), *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in self._stats())

    def _stats(self) -> list[os.stat_result]:
        return [(self.path / name).stat() for name in sorted(self.sums or {})]


def sums_of(path: Path) -> list[int]:
    """CRC-32 of every `BLOCK` bytes of a file; [0] if it is empty."""
    stored.require_regular(path)
    blocks = range(0, max(path.stat().st_size, 1), BLOCK)
    with path.open("rb") as f, ThreadPoolExecutor(THREADS) as pool:  # zlib works outside of Python's lock
        return list(pool.map(lambda start: zlib.crc32(os.pread(f.fileno(), BLOCK, start)), blocks))


def own_sum(meta: dict[str, Any], sums: dict[str, list[int]]) -> int:
    """CRC-32 of what meta.json holds beside this number."""
    others = {k: v for k, v in sums.items() if k != "meta.json"}
    return zlib.crc32(json.dumps([meta, others], sort_keys=True).encode())


def has_size(path: Path, size: int) -> bool:
    """Whether there is a file of so many bytes."""
    try:
        return path.stat().st_size == size
    except OSError:
        return False
