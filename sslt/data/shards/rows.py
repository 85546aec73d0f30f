"""`ShardedRows`: an array of rows over files of fixed rows, of which only what is asked for is in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sslt.data import cache
from sslt.data.shards.files import ShardFiles
from sslt.errors import UserError


class ShardedRows:
    """Rows [N, *shape] as NumPy would index them by int64 [B]: `rows[index]` is an array [B, *shape] of its own.

    Nothing is mapped or kept open: a read costs the memory of what it returns, and a `pread` for each run of rows in succession.
    Raises `UserError` for a shard that is damaged or cannot be had.
    """

    def __init__(self, files: ShardFiles, rows: int, count: int, shape: tuple[int, ...], dtype: Any):
        self.files, self.rows, self.shape, self.dtype = files, rows, (count, *shape), np.dtype(dtype)
        self.row_bytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize

    @classmethod
    def open(cls, entry: cache.Entry, name: str) -> ShardedRows:
        """The array `name` of an entry whose meta tells of its shards."""
        about = entry.meta["shards"][name]
        return cls(ShardFiles(entry, name), about["rows"], about["count"], tuple(about["shape"]), about["dtype"])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def bounds(self) -> np.ndarray:
        """The first row of each shard, and N behind them, int64 [S + 1]."""
        return np.minimum(np.arange(len(self.files) + 1, dtype=np.int64) * self.rows, len(self))

    def fetch(self, numbers: Iterable[int]) -> None:
        """Have these shards ready to be read."""
        self.files.fetch(list(numbers))

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        index = np.asarray(index, np.int64)
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        order = np.argsort(index, kind="stable")
        numbers = index[order] // self.rows
        for own in np.split(order, np.flatnonzero(np.diff(numbers)) + 1) if len(order) else []:
            self._read(int(index[own[0]] // self.rows), index[own] % self.rows, own, out)
        return out

    def _read(self, number: int, rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Put the `rows` of a shard, ascending, at `places` of `out`."""
        path, fd = self.files.open(number)
        try:
            first = header_of(fd)
            ends = np.flatnonzero((np.diff(rows) != 1) | (np.diff(places) != 1)) + 1
            for run in np.split(np.arange(len(rows)), ends):
                view = out[places[run[0]] : places[run[-1]] + 1]
                read_at(path, fd, view, first + int(rows[run[0]]) * self.row_bytes)
        finally:
            os.close(fd)


def header_of(fd: int) -> int:
    """Bytes of the header of a .npy file of version 1."""
    return 10 + int.from_bytes(os.pread(fd, 2, 8), "little")


def read_at(path: Path, fd: int, out: np.ndarray, offset: int) -> None:
    """Fill a contiguous array from a place in a shard. Raises `UserError` where the file ends before."""
    view = memoryview(out.reshape(-1).view(np.uint8).data)
    while len(view):
        n = os.preadv(fd, [view], offset)
        if n <= 0:
            raise UserError(f"{path} is cut short: the same command again, or resume=RUN, prepares this shard anew")
        view, offset = view[n:], offset + n
