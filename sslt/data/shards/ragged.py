"""`RaggedShards`: rows of different length over files of fixed rows each, of which only what is asked for is in memory."""

from __future__ import annotations

import collections
import os
from collections.abc import Iterable

import numpy as np

from sslt.data import cache
from sslt.data.shards.files import ShardFiles
from sslt.data.shards.rows import header_of, read_at

REMEMBERED = 20  # shards whose rows' ends are held, 4 bytes a row


class RaggedShards:
    """Rows int32 [n_i]. A shard is one array: the sizes of its rows, and then the rows one after the other (`pack`).

    Raises `UserError` for a shard that is damaged or cannot be had.
    """

    def __init__(self, entry: cache.Entry, name: str):
        about = entry.meta["shards"][name]
        self.files, self.rows, self.count = ShardFiles(entry, name), int(about["rows"]), int(about["count"])
        self._ends: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()

    @staticmethod
    def pack(sizes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The content of a shard."""
        return np.concatenate([sizes.astype(np.int32), values.astype(np.int32)])

    def __len__(self) -> int:
        return self.count

    @property
    def bounds(self) -> np.ndarray:
        """The first row of each shard, and N behind them, int64 [S + 1]."""
        return np.minimum(np.arange(len(self.files) + 1, dtype=np.int64) * self.rows, self.count)

    def fetch(self, numbers: Iterable[int]) -> None:
        """Have these shards ready to be read."""
        self.files.fetch(list(numbers))

    def sizes_of(self, index: np.ndarray) -> np.ndarray:
        """Lengths of the rows `index`, int64 [B]."""
        index = np.asarray(index, np.int64)
        out = np.empty(len(index), np.int64)
        numbers = index // self.rows
        for number in np.unique(numbers).tolist():
            places, ends = np.flatnonzero(numbers == number), self._ends_of(number)
            out[places] = np.diff(ends, prepend=0)[index[places] % self.rows]
        return out

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the rows `index` one after the other, int32; their lengths int64 [B])."""
        index = np.asarray(index, np.int64)
        sizes = self.sizes_of(index)
        starts = np.cumsum(sizes) - sizes
        values = np.empty(int(sizes.sum()), np.int32)
        numbers = index // self.rows
        for number in np.unique(numbers).tolist():
            places, ends = np.flatnonzero(numbers == number), self._ends_of(number)
            path, fd = self.files.open(number)
            try:
                first = header_of(fd) + 4 * len(ends)
                for place in places.tolist():
                    row, size = int(index[place] % self.rows), int(sizes[place])
                    read_at(path, fd, values[starts[place] : starts[place] + size], first + 4 * (int(ends[row]) - size))
            finally:
                os.close(fd)
        return values, sizes

    def whole(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """All of a shard: (its rows one after the other, int32; their lengths)."""
        _, fd = self.files.open(number)
        with os.fdopen(fd, "rb") as file:
            content = np.load(file)
        held = min(self.rows, self.count - number * self.rows)
        return content[held:], content[:held].astype(np.int64)

    def _ends_of(self, number: int) -> np.ndarray:
        """Where each row of a shard ends among its values, int32."""
        if number not in self._ends:
            held = np.empty(min(self.rows, self.count - number * self.rows), np.int32)
            path, fd = self.files.open(number)
            try:
                read_at(path, fd, held, header_of(fd))
            finally:
                os.close(fd)
            self._ends[number] = np.cumsum(held, dtype=np.int32)
            while len(self._ends) > REMEMBERED:
                self._ends.popitem(last=False)
        self._ends.move_to_end(number)
        return self._ends[number]
