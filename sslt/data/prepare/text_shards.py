"""Texts that are too many for memory: read one by one, tokenized shard by shard, and read of the shards."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sslt.data import cache, sharding
from sslt.data.base import Samples, Source
from sslt.data.prepare.text_samples import PackedSamples, TextSamples
from sslt.data.ragged import Ragged
from sslt.data.shards.ragged import RaggedShards
from sslt.data.shards.rows import ShardedRows
from sslt.data.shards.writing import Writer
from sslt.errors import UserError

MEASURED = 1000  # texts, the first ones, whose length says how many are in a shard
FORMAT = 1


def are_many(source: Source, split: str) -> bool:
    """Whether a split is read text by text and kept as shards: where it can be, and its files are as large as `shards.from_bytes`."""
    limits = sharding.limits()
    if limits is None or split != "unlabeled" or source.parts or source.answer.in_text or "unlabeled" not in source.own_splits():
        return False
    size = source.text_bytes(split)
    return size is not None and size >= limits.from_bytes


Read = Callable[[Sequence[str]], Iterator[list[tuple[list[int], list[int] | None]]]]  # texts → ids and subwords (None: there are none)


def write(folder: Path, source: Source, split: str, read: Read) -> dict[str, Any]:
    """Write the shards that are not in `folder` yet, and tokenize nothing of those that are. Returns the entry's meta."""
    limits, skipped = sharding.limits(), list[str]()
    assert limits is not None
    texts = source.stream(split, skipped)
    first = list(itertools.islice(texts, MEASURED))
    if not first:
        raise UserError(f"{source.name}: the {split} split is empty")
    measured = [row for chunk in read(first) for row in chunk]
    typical = sum(len(ids) for ids, _ in measured) / len(first)
    rows = limits.rows(4 * (int(typical) + 1))
    names = ("tokens",) if measured[0][1] is None else ("tokens", "subwords")
    writers, count = {name: Writer(folder, name, rows, (), np.int32) for name in names}, 0
    for number, chunk in enumerate(_chunks(itertools.chain(first, texts), rows)):
        count += len(chunk)
        if not all(writer.has(number) for writer in writers.values()):
            made = [row for part in read(chunk) for row in part]
            for i, writer in enumerate(writers.values()):
                rows_of: Any = [row[i] for row in made]
                sizes = np.array([len(row) for row in rows_of], np.int64)
                values = np.fromiter(itertools.chain.from_iterable(rows_of), np.int32, int(sizes.sum()))
                writer.put(number, RaggedShards.pack(sizes, values), {"tokens": np.array([len(values)])})
    finished = {name: writer.finish(count) for name, writer in writers.items()}
    tokens = int(finished["tokens"][1]["tokens"].sum())
    shards = {name: about for name, (about, _) in finished.items()}
    return {"shards": shards, "count": count, "tokens": tokens, "skipped": skipped, "answers": None}


def _chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, size)):
        yield chunk


class ShardedTexts(Samples):
    """Tokenized texts over shards: what `TextSamples` are, without answers, of the rows that are asked for.

    special, max_length, windows: as of `TextSamples`. chosen: int64, those of all rows that are samples, in order (None: all).
    """

    answers = None

    def __init__(
        self, shards: RaggedShards, fingerprint: str, skipped: int, chosen: np.ndarray | None = None,
        subwords: RaggedShards | None = None, **how: Any,
    ):  # fmt: skip
        self.texts, self.fingerprint, self.skipped, self.chosen, self.how = shards, fingerprint, skipped, chosen, how
        self.subwords = subwords

    def __len__(self) -> int:
        return len(self.texts) if self.chosen is None else len(self.chosen)

    @property
    def padding(self) -> dict[str, int]:
        return {"tokens": self.how["special"][2], "subwords": -1}

    @property
    def shards(self) -> np.ndarray | None:
        if self.chosen is None:
            return self.texts.bounds
        return np.searchsorted(self.chosen, self.texts.bounds) if (np.diff(self.chosen) > 0).all() else None

    def fetch(self, shards: Sequence[int]) -> None:
        self.texts.fetch(shards)
        if self.subwords is not None:
            self.subwords.fetch(shards)

    def lengths_of(self, index: np.ndarray) -> np.ndarray:
        sizes = self.texts.sizes_of(self._rows(index))
        return self._samples(np.empty(0, np.int32), sizes).lengths

    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """As `TextSamples.batch`."""
        index = np.asarray(index, np.int64)
        return {**self._read(index).batch(np.arange(len(index))), "index": torch.from_numpy(index)}

    def held(self) -> TextSamples:
        return self._read(np.arange(len(self)))

    def subset(self, index: np.ndarray) -> ShardedTexts:
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        return ShardedTexts(self.texts, cache.digest(self.fingerprint, index), self.skipped, self._rows(index), self.subwords, **self.how)

    def uncut(self) -> ShardedTexts:
        whole = copy.copy(self)
        whole.how = {**self.how, "max_length": None}
        return whole

    def packed(self, length: int) -> ShardedPacked:
        """All texts one after the other, in rows of exactly `length` tokens, as shards of their own."""
        cls, sep, _ = self.how["special"]
        limits = sharding.limits()
        if sep is None:
            raise UserError("pack=true joins texts into rows for a transformer, and this encoder reads each text whole: set pack=false")
        if self.chosen is not None or limits is None:
            raise UserError("pack=true joins all texts of a split, and these are a part of them: set pack=false")
        step = length - (cls is not None)
        key = cache.digest(self.fingerprint, "packed", sep, step, FORMAT)
        entry = cache.get_or_make("packed", key, lambda folder: self._write_packed(folder, step, limits.rows(4 * step)), resumable=True)
        return ShardedPacked(ShardedRows.open(entry, "rows"), length, cls, cache.digest(key, cls, length), self.skipped)

    def _write_packed(self, folder: Path, step: int, rows: int) -> dict[str, Any]:
        writer, number, held = Writer(folder, "rows", rows, (step,), np.int32), 0, np.empty(0, np.int32)
        for shard in range(len(self.texts.files)):
            values, sizes = self.texts.whole(shard)
            held = np.concatenate([held, np.insert(values, np.cumsum(sizes), cast(int, self.how["special"][1]))])
            while len(held) >= rows * step:
                if not writer.has(number):
                    writer.put(number, held[: rows * step].reshape(rows, step), {})
                number, held = number + 1, held[rows * step :]
        left = len(held) // step
        if left and not writer.has(number):
            writer.put(number, held[: left * step].reshape(left, step), {})
        count = number * rows + left
        if not count:
            raise UserError(f"the texts have {len(held)} tokens in all, less than one row of {step}")
        return {"shards": {"rows": writer.finish(count)[0]}, "tokens": count * step}

    def _rows(self, index: np.ndarray) -> np.ndarray:
        return index if self.chosen is None else self.chosen[index]

    def _read(self, index: np.ndarray) -> TextSamples:
        rows = self._rows(index)
        return self._samples(*self.texts.take(rows), None if self.subwords is None else Ragged.from_flat(*self.subwords.take(rows)))

    def _samples(self, tokens: np.ndarray, sizes: np.ndarray, subwords: Ragged | None = None) -> TextSamples:
        starts = np.cumsum(sizes) - sizes
        return TextSamples(tokens, starts, sizes, None, self.fingerprint, skipped=self.skipped, subwords=subwords, **self.how)


class ShardedPacked(PackedSamples):
    """Running text in full rows over shards. `grid`: int32 [N, step], the rows without the token that starts them."""

    def __init__(self, grid: ShardedRows, length: int, cls_id: int | None, fingerprint: str, skipped: int, rows: np.ndarray | None = None):
        self.grid, self.length, self.cls_id, self.fingerprint, self.skipped = grid, length, cls_id, fingerprint, skipped  # type: ignore[assignment]
        self.rows = np.arange(len(grid)) if rows is None else rows

    @property
    def shards(self) -> np.ndarray | None:
        return np.searchsorted(self.rows, self.grid.bounds) if (np.diff(self.rows) > 0).all() else None  # type: ignore[attr-defined]

    def fetch(self, shards: Sequence[int]) -> None:
        self.grid.fetch(shards)  # type: ignore[attr-defined]

    def held(self) -> PackedSamples:
        stream = np.asarray(self.grid[self.rows]).ravel()
        return PackedSamples(stream, self.length, self.cls_id, self.fingerprint)

    def subset(self, index: np.ndarray) -> ShardedPacked:
        fingerprint = cache.digest(self.fingerprint, np.asarray(index))
        return ShardedPacked(cast(Any, self.grid), self.length, self.cls_id, fingerprint, self.skipped, self.rows[index])
