"""What of images that are kept as shards is held in memory, and which few of them stand for all."""

from __future__ import annotations

from typing import Any

import numpy as np

from sslt.data import cache, frames, sharding
from sslt.data.shards.rows import ShardedRows

MEASURED = 32  # shards, spread evenly, whose images' mean and standard deviation stand for all


def are_many(count: int, row_bytes: int) -> bool:
    """Whether so many images of so many bytes are kept as shards."""
    limits = sharding.limits()
    return limits is not None and count * row_bytes >= limits.from_bytes


def key_of(key: str, row_bytes: int) -> str | None:
    """The key of the shards of what has the key `key` as one array; None where nothing is kept as shards."""
    limits = sharding.limits()
    return None if limits is None else cache.digest(key, "shards", limits.rows(row_bytes))


def bounds_of(images: Any, rows: np.ndarray | None) -> np.ndarray | None:
    """Where in `rows`, ascending ones of sharded images, each shard begins, int64 [S + 1]; None for no shards, or in another order."""
    if not isinstance(images, ShardedRows):
        return None
    if rows is None:
        return images.bounds
    return np.searchsorted(rows, images.bounds) if (np.diff(rows) > 0).all() else None


class Seen:
    """`frames.fitted` of rows as they are asked for: kept for all, it would be more than all else that is held of them."""

    def __init__(self, sizes: np.ndarray, size: int, fit: str, narrowest: int):
        self.sizes, self.how = sizes, (size, fit, narrowest)

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        return frames.fitted(self.sizes[index], *self.how)

    def take(self, index: np.ndarray) -> Seen:
        """Those of the rows `index`."""
        return Seen(self.sizes[index], *self.how)
