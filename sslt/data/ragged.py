"""Rows of different length in one array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np


class Ragged:
    """Rows of different length in one array: row i is values[starts[i] : starts[i] + sizes[i]]."""

    def __init__(self, values: np.ndarray, starts: np.ndarray, sizes: np.ndarray):
        self.values, self.starts, self.sizes = values, starts, sizes

    @classmethod
    def of(cls, rows: Sequence[Any], dtype: Any, *width: int) -> Ragged:
        """Of N arrays [n_i, *width]."""
        arrays = [np.asarray(row, dtype).reshape(-1, *width) for row in rows]
        flat = np.concatenate(arrays) if arrays else np.empty((0, *width), dtype)
        return cls.from_flat(flat, np.array([len(a) for a in arrays], np.int64))

    @classmethod
    def from_flat(cls, values: np.ndarray, sizes: np.ndarray) -> Ragged:
        """Of rows that follow one another."""
        return cls(values, np.cumsum(sizes) - sizes, sizes)

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Ragged:
        """Of N texts, each as its UTF-8, which `texts` reads again."""
        return cls.of([np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8) for text in texts], np.uint8)

    def texts(self) -> list[str]:
        return [row.tobytes().decode("utf-8", "surrogatepass") for row in self]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.starts[i] : self.starts[i] + self.sizes[i]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    def take(self, index: np.ndarray) -> Ragged:
        return Ragged(self.values, self.starts[index], self.sizes[index])

    def flat(self) -> np.ndarray:
        """The rows one after the other, without what lies between them."""
        if not len(self):
            return self.values[:0]
        begin = int(self.starts[0])
        if np.array_equal(self.starts, begin + np.cumsum(self.sizes) - self.sizes):  # they lie as they are wanted: no copy
            return self.values[begin : begin + int(self.sizes.sum())]
        return np.concatenate([self.values[s : s + n] for s, n in zip(self.starts.tolist(), self.sizes.tolist(), strict=True)])

    def padded(self, index: np.ndarray, fill: float) -> np.ndarray:
        """The rows `index`, filled up to the longest, [B, M, ...] with M at least 1."""
        sizes = self.sizes[index]
        place = np.arange(max(int(sizes.max(initial=0)), 1))
        inside = place < sizes[:, None]
        out = np.full((len(index), len(place), *self.values.shape[1:]), fill, self.values.dtype)
        out[inside] = self.values[(self.starts[index, None] + place)[inside]]
        return out


def objects(values: Sequence[Any]) -> np.ndarray:
    """Any N values as one array of objects [N]."""
    column = np.empty(len(values), object)
    for i, value in enumerate(values):  # one by one: NumPy would take rows of equal length for a matrix
        column[i] = value
    return column
