"""Answers whose last bits do not depend on which rows are computed together.

A library of matrix products chooses its kernels by the shape of the whole product, and another kernel adds in another order. Measured on
a CPU with AVX-512 (torch 2.15, one thread): a row alone has other last bits than among others (a product of a matrix and a vector) in
ResNets and in small BERTs, two rows and more agree with one another up to hundreds; MobileNetV3 has other bits from 16 rows on; padding a
text further than its own length changes them anywhere; which rows stand beside it, and where, changes nothing.

So a row is computed only in shapes that follow from the row itself: with rows of its own padded length, and in as many of them as were
found to give what `CANON` rows give. Whoever computes so, in whatever company, gets the same bits (on one machine with one version of
torch and one number of threads). On an Intel CPU (MKL, torch 2.15) where a row stands matters as well, in products that give it one, two or
three numbers, such as a head of two classes, of at most eight rows: they are made `NARROW` wide here, which ends it. (MKL's own way to
the same end, `MKL_CBWR=AUTO,STRICT`, costs a third of the speed of all products.) Should bits hang on a row's place all the same, each
row is computed by itself.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslt.data.answers import Answers
from sslt.data.base import Samples
from sslt.data.prepare.parts import PartSamples
from sslt.data.ragged import Ragged
from sslt.encoders.base import Encoder

CANON = 4  # rows; what they give is right by definition, unless it hangs on their places
NARROW = 4  # numbers that a product gives to a row at least
SIZES = (2, 4, 8, 16, 32, 64)  # rows of a batch, which is filled up to one of them by rows of its own
MANY = 100_000  # lengths of parts that are remembered
STEP = 8  # to a multiple of which texts are padded


class Alike:
    """Computes rows in batches of such shapes; keeps what it has found out about them, so that one is best used for all of an encoder."""

    def __init__(self) -> None:
        self.known: dict[tuple[Any, int], bool] = {}  # (what is alike in the rows, rows) → whether they give what `CANON` rows give
        self._joined: dict[tuple[int, ...], tuple[int, ...]] = {}  # `widths_of` parts → the shape of a row of theirs

    def batches(self, encoder: Encoder, samples: Samples, size: int, longest: int | None = None) -> Iterator[tuple[Any, np.ndarray]]:
        """(what is alike in them, rows) of all samples, the longest first, at most about `size` in a batch.

        longest: as in `Samples.ordered_batches`.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, key in enumerate(widths_of(samples)):
            groups.setdefault(self._shape(encoder, samples, i, key, longest), []).append(i)
        for key in sorted(groups, reverse=True):
            count = max(size, CANON)
            if key and longest is not None and max(key) > longest:
                count = max(CANON, count * longest // max(key))
            count = max(n for n in SIZES if n <= count)
            rows = np.array(groups[key], np.int64)
            for start in range(0, len(rows), count):
                yield key, rows[start : start + count]

    def _shape(self, encoder: Encoder, samples: Samples, i: int, key: tuple[int, ...], longest: int | None) -> tuple[int, ...]:
        """What is alike in rows that may be computed together: of texts the length that all of them are filled up to, which is a little
        coarse, so that more go together; of several parts that of each, and of the row that they are read as."""
        if not isinstance(samples, PartSamples):
            return key if not key or longest is None or key[0] > longest else (min(_coarse(key[0]), longest),)
        if key not in self._joined:
            if len(self._joined) > MANY:
                self._joined.clear()
            made = encoder.inputs(samples.batch(np.array([i])))
            self._joined[key] = (*key[:-1], *(made[name].shape[1] for name in sorted(made)))
        return self._joined[key]

    def compute(self, encoder: Encoder, of: Callable[[np.ndarray], Any], key: Any, rows: np.ndarray) -> Any:
        """What `of` gives (`Answers` or a tensor [B, …]) of rows that are alike in `key`, row by row, at most `SIZES[-1]` of them."""
        with not_narrow():
            return self._computed(encoder, of, key, rows)

    def _computed(self, encoder: Encoder, of: Callable[[np.ndarray], Any], key: Any, rows: np.ndarray) -> Any:
        size = next(n for n in SIZES if n >= len(rows))
        known = self.known.get((key, size))
        if known is False:
            return self._otherwise(encoder, of, key, rows)
        filled = np.resize(rows, size)
        if known:
            return _take(of(filled), np.arange(len(rows)))
        found, features = _watched(encoder, of, filled)
        if size != CANON and (key, CANON) not in self.known:
            self._computed(encoder, of, key, np.resize(rows, CANON))
        self.known[key, size] = self.known.get((key, CANON), True) and all(
            self._agrees(encoder, of, filled, found, features, at) for at in _looked_at(size)
        )
        return _take(found, np.arange(len(rows))) if self.known[key, size] else self._otherwise(encoder, of, key, rows)

    def _otherwise(self, encoder: Encoder, of: Callable[[np.ndarray], Any], key: Any, rows: np.ndarray) -> Any:
        """The same in fewer rows: in `CANON`, in two halves, or each by itself."""
        if len(rows) > CANON:
            middle = max(n for n in SIZES if n < len(rows))
            return _join([self._computed(encoder, of, key, part) for part in (rows[:middle], rows[middle:])])
        if self.known.get((key, CANON)) is False:
            return _join([_take(of(np.resize(row, CANON)), np.arange(1)) for row in rows])
        return _take(self._computed(encoder, of, key, np.resize(rows, CANON)), np.arange(len(rows)))

    @staticmethod
    def _agrees(
        encoder: Encoder, of: Callable[[np.ndarray], Any], filled: np.ndarray, found: Any, features: list[Tensor], at: np.ndarray
    ) -> bool:
        """Whether the rows at these places are, bit for bit, what `CANON` rows by themselves give; what the encoder made of them, too.

        The `CANON` rows are the same ones, each a place further, so that places are compared as well.
        """
        alone, theirs = _watched(encoder, of, np.roll(np.resize(filled[at], CANON), 1))
        there = (np.arange(len(at)) + 1) % CANON
        rows = all(torch.equal(a[at], b[there]) for a, b in zip(features, theirs, strict=True) if len(a) == len(filled))
        return rows and _bits(_take(found, at)) == _bits(_take(alone, there))


_linear, _lock, _users = F.linear, threading.Lock(), [0]


def _wide_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    missing = NARROW - len(weight)
    if missing <= 0:
        return _linear(input, weight, bias)
    return _linear(input, F.pad(weight, (0, 0, 0, missing)), None if bias is None else F.pad(bias, (0, missing)))[..., : len(weight)]


@contextlib.contextmanager
def not_narrow() -> Iterator[None]:
    """Within, products that give a row fewer than `NARROW` numbers are made so wide, by zeros that are left out again.

    For all threads, to whom it makes no other difference: a mode of this one (`TorchFunctionMode`) would be asked at every call of torch,
    which takes a fifth of the time of a small model.
    """
    with _lock:
        _users[0] += 1
        F.linear = _wide_linear  # type: ignore[assignment]
    try:
        yield
    finally:
        with _lock:
            _users[0] -= 1
            if not _users[0]:
                F.linear = _linear


def alike_on(device: torch.device) -> Alike | None:
    """What rows are computed by where answers are wanted that are the same everywhere; None on a GPU, whose kernels differ more often."""
    return Alike() if device.type == "cpu" else None


def widths_of(samples: Samples) -> list[tuple[int, ...]]:
    """What of the shape of a batch follows from each row: nothing of images; of texts the length they are padded to.

    Of several parts that of each, and how long they are together, which says how long the row is that they are read as.
    """
    lengths = samples.lengths
    if isinstance(samples, PartSamples) and lengths is not None:
        parts = [widths_of(part) for part in samples.parts.values()]
        return [(*(n for key in keys for n in key), int(n)) for *keys, n in zip(*parts, lengths, strict=True)]
    return [()] * len(samples) if lengths is None else [(-(-int(n) // STEP) * STEP,) for n in lengths]


def _coarse(width: int) -> int:
    """A multiple of `STEP`, of longer texts of a larger one, by which a text grows by less than half: 32, 48, 64, 96, 128, 192, …"""
    step = max(STEP, 2 ** (max(width - 1, 1).bit_length() - 2))
    return -(-width // step) * step


def widened(batch: dict[str, Tensor], key: tuple[int, ...], padding: dict[str, int]) -> dict[str, Tensor]:
    """A batch of texts filled up to the length that `key` says."""
    more = key[0] - batch["tokens"].shape[1] if len(key) == 1 and "tokens" in batch else 0
    if more <= 0:
        return batch
    fills = {"tokens": padding.get("tokens", 0), "mask": 0, "places": padding.get("places", -1)}
    return {k: F.pad(x, (*[0] * (2 * (x.dim() - 2)), 0, more), value=fills[k]) if k in fills else x for k, x in batch.items()}


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
