"""From histories to batches of item ids: a vocabulary of the items of training, and the items of a split stored once as flat arrays."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslt import stored
from sslt.data import cache
from sslt.data.answers import Item
from sslt.data.base import Samples, Source
from sslt.data.prepare.text_processor import CHUNK, TokenProcessor, content_of
from sslt.data.prepare.text_samples import TextSamples
from sslt.data.ragged import Ragged
from sslt.errors import UserError

log = logging.getLogger("sslt")
FORMAT = 1
FILE = "items.json"
PAD, MASK, UNKNOWN = 0, 1, 2  # ids that are no items; an unknown one is an item that training never saw
FIRST = 3  # id of the first item


class ItemProcessor(TokenProcessor):
    """Turns a source's splits into `ItemSamples`, of which an encoder reads the last `max_length` items.

    The vocabulary is `items`, names that have the ids of their places from `FIRST` on.
    """

    modality = "items"
    special = (None, None, PAD)
    windows = 1
    pad_id, mask_id, unknown_id = PAD, MASK, UNKNOWN
    cls_id, sep_id = None, None
    special_ids = (PAD, MASK, UNKNOWN)

    def __init__(self, items: Sequence[str], max_length: int):
        if max_length < 2:
            raise UserError(f"max_length={max_length}: give at least 2, how many items of a history are read")
        self.items, self.max_length = list(items), max_length
        self.vocab_size = FIRST + len(self.items)
        self.digest = cache.digest("items", self.items, FORMAT)
        self._ids = {name: i for i, name in enumerate(self.items, FIRST)}

    @classmethod
    def fit(cls, source: Source, max_length: int) -> ItemProcessor:
        """A processor of the items in the source's unlabeled histories, which hold nothing of val or test; kept in the cache by content."""

        def learn(folder: Path) -> dict[str, Any]:
            found = {name for history in source.get("unlabeled").items for name in history}
            _write(folder, sorted(found, key=lambda name: (len(name), name)), max_length)
            return {}

        place = cache.get_or_make("vocabularies", cache.digest("items", content_of(source), FORMAT), learn).path
        return cls(cls.load(place).items, max_length)

    def save(self, folder: Path) -> None:
        """Write names and settings as plain JSON."""
        _write(folder, self.items, self.max_length)

    @classmethod
    def load(cls, folder: Path) -> ItemProcessor:
        """What `save` wrote. Raises `UserError` where it is not there or damaged."""
        file = Path(folder) / FILE
        if not file.is_file():
            raise UserError(f"{stored.shown(Path(folder))}: no items saved there ({FILE} is missing)")
        found = stored.json_object(file)
        items, longest = stored.value(found, "items", list, file), stored.value(found, "max_length", int, file)
        if not all(isinstance(name, str) for name in items) or len(set(items)) < len(items):
            raise UserError(f"{stored.shown(file)} is damaged: 'items' are not names, each once; copy it again")
        return cls(items, longest)

    def ids(self, names: Sequence[str]) -> np.ndarray:
        """int64 [n], `UNKNOWN` where an item is not in the vocabulary."""
        return np.array([self._ids.get(name, UNKNOWN) for name in names], np.int64)

    def encode(self, texts: Sequence[Any] | np.ndarray) -> Iterator[list[list[int]]]:
        for i in range(0, len(texts), CHUNK):
            chunk = [texts[j] for j in range(i, min(i + CHUNK, len(texts)))]
            yield [[self._ids.get(name, UNKNOWN) for name in history] for history in chunk]

    def decode(self, ids: Sequence[int]) -> str:
        """The names; _ where nothing is read, … for an item that is hidden or not known."""
        return " ".join("_" if i == PAD else "…" if i < FIRST else self.items[i - FIRST] for i in ids)

    def prepare(self, source: Source, split: str) -> ItemSamples:
        made = self._with_items(super().prepare(source, split), source)
        if unknown := int((np.asarray(made.tokens) == UNKNOWN).sum()):
            new = sorted({name for history in source.get(split).items for name in history if name not in self._ids})
            log.warning(
                "%s, %s: %d of the %d items in histories were never seen in training: they say nothing (%s%s)",
                source.name, split, unknown, len(made.tokens), ", ".join(new[:5]), ", …" if len(new) > 5 else "",
            )  # fmt: skip
        return made

    def at_once(self, source: Source) -> ItemSamples:
        return self._with_items(super().at_once(source), source)

    def _with_items(self, made: Samples, source: Source) -> ItemSamples:
        """The samples with the ids of their answers."""
        assert isinstance(made, TextSamples)
        if made.answers is not None and not isinstance(made.answers, Item):
            raise UserError(f"the histories of {source.name} have {made.answers.words}: what is learned of histories is the next item")
        names = None if made.answers is None else self.ids(made.answers.items)
        about = (made.special, made.max_length, made.skipped)
        following = None if names is None else names[np.asarray(made.answers.values)]  # type: ignore[union-attr]
        return ItemSamples(made.tokens, made.starts, made.sizes, made.answers, made.fingerprint, *about, following=following)


class ItemSamples(TextSamples):
    """Histories, of which the last `max_length` items are read. following: int64 [N], the ids of the answers."""

    following: np.ndarray | None

    def __init__(self, *args: Any, following: np.ndarray | None):
        super().__init__(*args)
        self.following = following

    def _read(self, sizes: np.ndarray) -> np.ndarray:
        return np.clip(sizes, 1, self.max_length)

    @property
    def padding(self) -> dict[str, int]:
        return {"tokens": PAD, "history": PAD}

    def batch(self, index: np.ndarray) -> dict[str, torch.Tensor]:
        """`tokens` int64 [B, L] and `mask` bool [B, L], the last items and False on padding; `history` int64 [B, M], all of them; `index`.

        Where there are answers: `item` int64 [B], their ids, `UNKNOWN` for an item that the vocabulary lacks. A row without a history is
        read as one unknown item.
        """
        index = np.asarray(index, dtype=np.int64)
        sizes, lengths = self.sizes[index], self.lengths_of(index)
        width = -(-int(lengths.max(initial=1)) // 8) * 8
        place = np.arange(width if self.max_length is None else min(width, self.max_length))
        mask = place < lengths[:, None]
        tokens = np.where(mask, UNKNOWN, PAD)
        inside = mask & (sizes > 0)[:, None]
        tokens[inside] = self.tokens[((self.starts[index] + sizes - lengths)[:, None] + place)[inside]]
        history = Ragged(self.tokens, self.starts, self.sizes).padded(index, PAD).astype(np.int64)
        found = {"tokens": tokens, "mask": mask, "history": history, "index": index}
        if self.following is not None:
            found["item"] = self.following[index]
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in found.items()}

    def subset(self, index: np.ndarray) -> ItemSamples:
        part = super().subset(index)
        assert isinstance(part, ItemSamples)
        part.following = None if self.following is None else self.following[index]
        return part

    def packed(self, length: int) -> Any:
        raise UserError("pack=true joins texts into rows, and histories of users do not follow one another: set pack=false")


def _write(folder: Path, items: list[str], max_length: int) -> None:
    text = json.dumps({"items": items, "max_length": max_length}, ensure_ascii=False)
    cache.write_atomic(Path(folder) / FILE, text)
