"""Answers whose last bits do not depend on which rows are computed together.

A library of matrix products chooses its kernels by the shape of the whole product, and another kernel adds in another order. Measured on
a CPU with AVX-512 (torch 2.15, one thread): a row alone has other last bits than among others (a product of a matrix and a vector) in
ResNets and in small BERTs, two rows and more agree with one another up to hundreds; MobileNetV3 has other bits from 16 rows on; padding a
text further than its own length changes them anywhere; which rows stand beside it, and where, changes nothing.

So a row is computed only in shapes that follow from the row itself: with rows of its own padded length, and in as many of them as were
found to give what `CANON` rows give. Whoever computes so, in whatever company, gets the same bits (on one machine with one version of
torch and one number of threads).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.data.prepare.parts import PartSamples
from sslt.data.ragged import Ragged
from sslt.encoders.base import Encoder

CANON = 4  # rows; what they give is right by definition
SIZES = (2, 4, 8, 16, 32, 64)  # rows of a batch, which is filled up to one of them by rows of its own
STEP = 8  # to a multiple of which texts are padded


class Alike:
    """Computes rows in batches of such shapes; keeps what it has found out about them, so that one is best used for all of an encoder."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, int], bool] = {}  # (what is alike in the rows, rows) → whether they give what `CANON` rows give

    def batches(self, samples: Samples, size: int, longest: int | None = None) -> Iterator[tuple[Any, np.ndarray]]:
        """(what is alike in them, rows) of all samples, the longest first, at most about `size` in a batch.

        longest: as in `Samples.ordered_batches`.
        """
        widths = widths_of(samples)
        groups: dict[Any, list[int]] = {}
        for i, key in enumerate(widths):
            groups.setdefault(key, []).append(i)
        for key in sorted(groups, reverse=True):
            count = max(size, CANON)
            if key and longest is not None and sum(key) > longest:
                count = max(CANON, count * longest // sum(key))
            count = max(n for n in SIZES if n <= count)
            rows = np.array(groups[key], np.int64)
            for start in range(0, len(rows), count):
                yield key, rows[start : start + count]

    def compute(self, encoder: Encoder, of: Callable[[np.ndarray], Any], key: Any, rows: np.ndarray) -> Any:
        """What `of` gives (`Answers` or a tensor [B, …]) of rows that are alike in `key`, row by row, at most `SIZES[-1]` of them."""
        size = next(n for n in SIZES if n >= len(rows))
        if size != CANON and self.known.get((key, size)) is False:
            return self._otherwise(encoder, of, key, rows)
        filled = np.resize(rows, size)
        if size == CANON or (key, size) in self.known:
            return _take(of(filled), np.arange(len(rows)))
        found, features = _watched(encoder, of, filled)
        self.known[key, size] = all(self._agrees(encoder, of, filled, found, features, at) for at in _looked_at(size))
        return _take(found, np.arange(len(rows))) if self.known[key, size] else self._otherwise(encoder, of, key, rows)

    def _otherwise(self, encoder: Encoder, of: Callable[[np.ndarray], Any], key: Any, rows: np.ndarray) -> Any:
        """The same in `CANON` rows, or in two halves."""
        if len(rows) <= CANON:
            return _take(of(np.resize(rows, CANON)), np.arange(len(rows)))
        middle = max(n for n in SIZES if n < len(rows))
        return _join([self.compute(encoder, of, key, part) for part in (rows[:middle], rows[middle:])])

    @staticmethod
    def _agrees(
        encoder: Encoder, of: Callable[[np.ndarray], Any], filled: np.ndarray, found: Any, features: list[Tensor], at: np.ndarray
    ) -> bool:
        """Whether the rows at these places are, bit for bit, what `CANON` rows by themselves give; what the encoder made of them, too."""
        alone, theirs = _watched(encoder, of, np.resize(filled[at], CANON))
        first = np.arange(len(at))
        rows = all(torch.equal(a[at], b[first]) for a, b in zip(features, theirs, strict=True) if len(a) == len(filled))
        return rows and _bits(_take(found, at)) == _bits(_take(alone, first))


def alike_on(device: torch.device) -> Alike | None:
    """What rows are computed by where answers are wanted that are the same everywhere; None on a GPU, whose kernels differ more often."""
    return Alike() if device.type == "cpu" else None


def widths_of(samples: Samples) -> list[tuple[int, ...]]:
    """What of the shape of a batch follows from each row: nothing of images; of texts the length they are padded to.

    Of several parts that of each, and how long they are together, by which they are padded where they are read as one row.
    """
    if isinstance(samples, PartSamples):
        parts = [widths_of(part) for part in samples.parts.values()]
        together = samples.lengths
        return [
            (*(n for key in keys for n in key), *(() if together is None else (int(together[i]),)))
            for i, keys in enumerate(zip(*parts, strict=True))
        ]
    lengths = samples.lengths
    return [()] * len(samples) if lengths is None else [(-(-int(n) // STEP) * STEP,) for n in lengths]


def _looked_at(size: int) -> list[np.ndarray]:
    """Places in a batch that are compared: the first, the middle and the last."""
    n = min(size, CANON)
    return [np.arange(start, start + n) for start in sorted({0, (size - n) // 2, size - n})]


def _watched(encoder: Encoder, of: Callable[[np.ndarray], Any], rows: np.ndarray) -> tuple[Any, list[Tensor]]:
    """What `of` gives, and the pooled features that the encoder made on the way."""
    features: list[Tensor] = []
    hook = encoder.register_forward_hook(lambda module, inputs, output: features.append(output.pooled))
    try:
        return of(rows), features
    finally:
        hook.remove()


def _take(found: Any, index: np.ndarray) -> Any:
    return found.take(index) if isinstance(found, Answers) else found[torch.from_numpy(index)]


def _join(parts: list[Any]) -> Any:
    return Answers.join(parts) if isinstance(parts[0], Answers) else torch.cat(parts)


def _bits(found: Any) -> list[bytes]:
    """The bytes of everything in answers or in a tensor."""
    if isinstance(found, Tensor):
        return [found.cpu().numpy().tobytes()]
    columns = [getattr(found, name) for name in found.present()]
    arrays = [part for c in columns for part in ((c.flat(), c.sizes) if isinstance(c, Ragged) else (np.asarray(c),))]
    return [pickle.dumps(a.tolist()) if a.dtype == object else np.ascontiguousarray(a).tobytes() for a in arrays]
